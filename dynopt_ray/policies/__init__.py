"""Policies, which decide how a network's structure changes, and `adapt`, which runs one."""

from dynopt_ray.policies.actions import (
    DEFAULT_ACTIONS,
    Action,
    ActionConfig,
    ActionMask,
    ActionSet,
    GrowUnits,
    Keep,
    PruneNetwork,
    PruneWeights,
    ShrinkNetwork,
    ShrinkUnits,
    Stop,
    legal_action,
)
from dynopt_ray.policies.adaptation import AdaptResult, adapt, check_adaptation
from dynopt_ray.policies.costs import (
    CHARGED_COSTS,
    DEFAULT_COST,
    ChargedCost,
    CostConfig,
    CostMixture,
)
from dynopt_ray.policies.decisions import Situation, situation
from dynopt_ray.policies.descriptors import Descriptors, stack_descriptors
from dynopt_ray.policies.evaluation import ENVIRONMENT, PolicyEvaluation, evaluate_policy
from dynopt_ray.policies.evidence import GraphEvidence, StackEvidence
from dynopt_ray.policies.graph_descriptors import (
    DescribedNetwork,
    describe_graph,
    describe_graphs,
)
from dynopt_ray.policies.learned import (
    DQNPolicy,
    DQNSettings,
    DuelingNetwork,
    QTable,
    dueling,
    masked_q,
    train_qtable,
)
from dynopt_ray.policies.observation import (
    FEATURES,
    LIMIT,
    EpisodeProgress,
    Observation,
    Performance,
)
from dynopt_ray.policies.policy import ConstantPolicy, Policy, RandomPolicy, previews
from dynopt_ray.policies.previews import ACTION_FEATURES, Preview, changes, preview_graph
from dynopt_ray.policies.rules import DataSizedWidths, Rule, StalledGrowth, UselessShrinking
from dynopt_ray.policies.task_data import (
    NUM_COMPENSATION_ROWS,
    compensation_batches,
    num_training_rows,
)
from dynopt_ray.policies.unit_scores import stacked_scores, summarise
from dynopt_ray.policies.utilities import utility

__all__ = [
    "ACTION_FEATURES",
    "CHARGED_COSTS",
    "DEFAULT_ACTIONS",
    "DEFAULT_COST",
    "ENVIRONMENT",
    "FEATURES",
    "LIMIT",
    "NUM_COMPENSATION_ROWS",
    "Action",
    "ActionConfig",
    "ActionMask",
    "ActionSet",
    "AdaptResult",
    "ChargedCost",
    "ConstantPolicy",
    "CostConfig",
    "CostMixture",
    "DQNPolicy",
    "DQNSettings",
    "DataSizedWidths",
    "DescribedNetwork",
    "Descriptors",
    "DuelingNetwork",
    "EpisodeProgress",
    "GraphEvidence",
    "GrowUnits",
    "Keep",
    "Observation",
    "Performance",
    "Policy",
    "PolicyEvaluation",
    "Preview",
    "PruneNetwork",
    "PruneWeights",
    "QTable",
    "RandomPolicy",
    "Rule",
    "ShrinkNetwork",
    "ShrinkUnits",
    "Situation",
    "StackEvidence",
    "StalledGrowth",
    "Stop",
    "UselessShrinking",
    "adapt",
    "changes",
    "check_adaptation",
    "compensation_batches",
    "describe_graph",
    "describe_graphs",
    "dueling",
    "evaluate_policy",
    "legal_action",
    "masked_q",
    "num_training_rows",
    "preview_graph",
    "previews",
    "situation",
    "stack_descriptors",
    "stacked_scores",
    "summarise",
    "train_qtable",
    "utility",
]
