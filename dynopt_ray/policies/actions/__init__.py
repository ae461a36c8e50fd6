"""Actions: what a policy can do to the width group under the cursor, one class per file."""

from dynopt_ray.policies.actions.action import Action, ActionMask
from dynopt_ray.policies.actions.action_set import (
    DEFAULT_ACTIONS,
    ActionConfig,
    ActionSet,
    legal_action,
)
from dynopt_ray.policies.actions.grow import GrowUnits
from dynopt_ray.policies.actions.keep import Keep
from dynopt_ray.policies.actions.prune import PruneWeights
from dynopt_ray.policies.actions.shrink import ShrinkUnits
from dynopt_ray.policies.actions.stop import Stop

__all__ = [
    "DEFAULT_ACTIONS",
    "Action",
    "ActionConfig",
    "ActionMask",
    "ActionSet",
    "GrowUnits",
    "Keep",
    "PruneWeights",
    "ShrinkUnits",
    "Stop",
    "legal_action",
]
