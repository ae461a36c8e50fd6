"""Policies, which decide how a network's structure changes, and `adapt`, which runs one."""

from dynopt_ray.policies.actions import (
    DEFAULT_ACTIONS,
    Action,
    ActionConfig,
    ActionMask,
    ActionSet,
    GrowUnits,
    Keep,
    PruneWeights,
    ShrinkUnits,
    Stop,
    legal_action,
)
from dynopt_ray.policies.adaptation import AdaptResult, adapt, check_adaptation
from dynopt_ray.policies.costs import DEFAULT_COST, CostMixture, CostSpec
from dynopt_ray.policies.cuts import (
    CUT_POLICIES,
    AllocatedCut,
    CutCandidate,
    CutChoice,
    CutPolicy,
    CutResult,
    Cutting,
    LadderCut,
    SingleCut,
    WholeCut,
    cut_once,
    ladder,
    make_cut_policy,
)
from dynopt_ray.policies.decisions import Situation, situation
from dynopt_ray.policies.descriptors import Descriptors, stack_descriptors
from dynopt_ray.policies.evaluation import ENVIRONMENT, PolicyEvaluation, evaluate_policy
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
from dynopt_ray.policies.observation import FEATURES, LIMIT, Observation, Performance
from dynopt_ray.policies.policy import ConstantPolicy, Policy, RandomPolicy
from dynopt_ray.policies.rules import DataSizedWidths, Rule, StalledGrowth, UselessShrinking
from dynopt_ray.policies.task_data import (
    NUM_COMPENSATION_ROWS,
    compensation_inputs,
    num_training_rows,
)
from dynopt_ray.policies.unit_scores import stacked_scores, summarise
from dynopt_ray.policies.utilities import CHARGED_COSTS, ChargedCost, utility

__all__ = [
    "CHARGED_COSTS",
    "CUT_POLICIES",
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
    "AllocatedCut",
    "ChargedCost",
    "ConstantPolicy",
    "CostMixture",
    "CostSpec",
    "CutCandidate",
    "CutChoice",
    "CutPolicy",
    "CutResult",
    "Cutting",
    "DQNPolicy",
    "DQNSettings",
    "DataSizedWidths",
    "DescribedNetwork",
    "Descriptors",
    "DuelingNetwork",
    "GrowUnits",
    "Keep",
    "LadderCut",
    "Observation",
    "Performance",
    "Policy",
    "PolicyEvaluation",
    "PruneWeights",
    "QTable",
    "RandomPolicy",
    "Rule",
    "ShrinkUnits",
    "SingleCut",
    "Situation",
    "StalledGrowth",
    "Stop",
    "UselessShrinking",
    "WholeCut",
    "adapt",
    "check_adaptation",
    "compensation_inputs",
    "cut_once",
    "describe_graph",
    "describe_graphs",
    "dueling",
    "evaluate_policy",
    "ladder",
    "legal_action",
    "make_cut_policy",
    "masked_q",
    "num_training_rows",
    "situation",
    "stack_descriptors",
    "stacked_scores",
    "summarise",
    "train_qtable",
    "utility",
]
