"""Actions: what a policy can do to a width group or to the whole network, one class per file."""

from dynopt_ray.policies.actions.action import Action, ActionMask, Unchanging, by_layer
from dynopt_ray.policies.actions.action_set import (
    DEFAULT_ACTIONS,
    ActionConfig,
    ActionSet,
    legal_action,
)
from dynopt_ray.policies.actions.grow import GrowUnits
from dynopt_ray.policies.actions.keep import Keep
from dynopt_ray.policies.actions.prune import PruneWeights
from dynopt_ray.policies.actions.prune_network import PruneNetwork
from dynopt_ray.policies.actions.shrink import ShrinkUnits
from dynopt_ray.policies.actions.shrink_network import ShrinkNetwork
from dynopt_ray.policies.actions.stop import Stop

__all__ = [
    "DEFAULT_ACTIONS",
    "Action",
    "ActionConfig",
    "ActionMask",
    "ActionSet",
    "GrowUnits",
    "Keep",
    "PruneNetwork",
    "PruneWeights",
    "ShrinkNetwork",
    "ShrinkUnits",
    "Stop",
    "Unchanging",
    "by_layer",
    "legal_action",
]
