"""Policies: what decides which structure a network should have, and `adapt`, which lets one."""

from dynopt_ray.policies.actions import Action, ActionSet, action_mask, legal_action
from dynopt_ray.policies.adaptation import AdaptResult, adapt
from dynopt_ray.policies.arrays import ActionMask, IntArray
from dynopt_ray.policies.descriptors import FloatArray, Reading, stack_readings
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
from dynopt_ray.policies.networks import plan_action, read_graph
from dynopt_ray.policies.observation import FEATURES, LIMIT, Observation, Progress, observe
from dynopt_ray.policies.policy import ConstantPolicy, Policy, RandomPolicy
from dynopt_ray.policies.rules import DataSizedWidths, Rule, StalledGrowth, UselessShrinking
from dynopt_ray.policies.task_data import (
    NUM_COMPENSATION_ROWS,
    compensation_inputs,
    num_training_rows,
)
from dynopt_ray.policies.unit_scores import lowest, pruned, scores_of, summarise
from dynopt_ray.policies.utilities import COST_KINDS, CostKind, utility

__all__ = [
    "COST_KINDS",
    "ENVIRONMENT",
    "FEATURES",
    "LIMIT",
    "NUM_COMPENSATION_ROWS",
    "Action",
    "ActionMask",
    "ActionSet",
    "AdaptResult",
    "ConstantPolicy",
    "CostKind",
    "DQNPolicy",
    "DQNSettings",
    "DataSizedWidths",
    "DuelingNetwork",
    "FloatArray",
    "IntArray",
    "Observation",
    "Policy",
    "PolicyEvaluation",
    "Progress",
    "QTable",
    "RandomPolicy",
    "Reading",
    "Rule",
    "StalledGrowth",
    "UselessShrinking",
    "action_mask",
    "adapt",
    "compensation_inputs",
    "dueling",
    "evaluate_policy",
    "legal_action",
    "lowest",
    "masked_q",
    "num_training_rows",
    "observe",
    "plan_action",
    "pruned",
    "read_graph",
    "scores_of",
    "stack_readings",
    "summarise",
    "train_qtable",
    "utility",
]
