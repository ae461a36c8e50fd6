"""Policies: what decides which structure a network should have, and `adapt`, which lets one."""

from dynopt_ray.deprecation import deprecated_names
from dynopt_ray.policies.actions import ActionKind, ActionMask, ActionSet, action_mask, legal_action
from dynopt_ray.policies.adaptation import AdaptResult, adapt
from dynopt_ray.policies.descriptors import Descriptors, stack_descriptors
from dynopt_ray.policies.evaluation import ENVIRONMENT, PolicyEvaluation, evaluate_policy
from dynopt_ray.policies.learned import (
    DQNPolicy,
    DQNSettings,
    DuelingNetwork,
    QTable,
    dueling,
    masked_q,
    train_qtable,
)
from dynopt_ray.policies.networks import describe_graph, plan_action
from dynopt_ray.policies.observation import FEATURES, LIMIT, EpisodeProgress, Observation, observe
from dynopt_ray.policies.policy import ConstantPolicy, Policy, RandomPolicy
from dynopt_ray.policies.rules import DataSizedWidths, Rule, StalledGrowth, UselessShrinking
from dynopt_ray.policies.task_data import (
    NUM_COMPENSATION_ROWS,
    compensation_inputs,
    num_training_rows,
)
from dynopt_ray.policies.unit_scores import lowest, pruned, scores_of, summarise
from dynopt_ray.policies.utilities import CHARGED_COSTS, ChargedCost, utility

__getattr__ = deprecated_names(__name__, {"Action": "ActionKind"})

__all__ = [
    "CHARGED_COSTS",
    "ENVIRONMENT",
    "FEATURES",
    "LIMIT",
    "NUM_COMPENSATION_ROWS",
    "ActionKind",
    "ActionMask",
    "ActionSet",
    "AdaptResult",
    "ChargedCost",
    "ConstantPolicy",
    "DQNPolicy",
    "DQNSettings",
    "DataSizedWidths",
    "Descriptors",
    "DuelingNetwork",
    "EpisodeProgress",
    "Observation",
    "Policy",
    "PolicyEvaluation",
    "QTable",
    "RandomPolicy",
    "Rule",
    "StalledGrowth",
    "UselessShrinking",
    "action_mask",
    "adapt",
    "compensation_inputs",
    "describe_graph",
    "dueling",
    "evaluate_policy",
    "legal_action",
    "lowest",
    "masked_q",
    "num_training_rows",
    "observe",
    "plan_action",
    "pruned",
    "scores_of",
    "stack_descriptors",
    "summarise",
    "train_qtable",
    "utility",
]
