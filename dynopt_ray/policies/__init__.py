"""Policies: what decides which structure a network should have, and `adapt`, which lets one."""

from dynopt_ray.policies.actions import Action, ActionSet, action_mask, legal_action
from dynopt_ray.policies.adapt import AdaptResult, adapt
from dynopt_ray.policies.dqn import DQNPolicy, DuelingNetwork
from dynopt_ray.policies.evaluation import ENVIRONMENT, PolicyEvaluation, evaluate_policy
from dynopt_ray.policies.observation import FEATURES
from dynopt_ray.policies.policy import ConstantPolicy, Policy, RandomPolicy
from dynopt_ray.policies.qtable import QTable, train_qtable
from dynopt_ray.policies.rule import Rule
from dynopt_ray.policies.rules import DataSizedWidths, StalledGrowth, UselessShrinking
from dynopt_ray.policies.utility import COST_KINDS, CostKind, utility

__all__ = [
    "COST_KINDS",
    "ENVIRONMENT",
    "FEATURES",
    "Action",
    "ActionSet",
    "AdaptResult",
    "ConstantPolicy",
    "CostKind",
    "DQNPolicy",
    "DataSizedWidths",
    "DuelingNetwork",
    "Policy",
    "PolicyEvaluation",
    "QTable",
    "RandomPolicy",
    "Rule",
    "StalledGrowth",
    "UselessShrinking",
    "action_mask",
    "adapt",
    "evaluate_policy",
    "legal_action",
    "train_qtable",
    "utility",
]
