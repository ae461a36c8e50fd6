"""State that edits and forward passes must preserve: masks, modes, random state, torch settings."""

from dynopt_ray.structure.preserve.collector import CollectorPaused
from dynopt_ray.structure.preserve.computed_weights import recompute_weights
from dynopt_ray.structure.preserve.entered_twice import within
from dynopt_ray.structure.preserve.extra_state import (
    extra_states,
    from_stored,
    has_extra_state,
    storable_extra_state,
)
from dynopt_ray.structure.preserve.masks import mask_of, masked_parameters, set_mask, set_masks
from dynopt_ray.structure.preserve.shared_memory import sharing_memory
from dynopt_ray.structure.preserve.surroundings import RandomState, Surroundings
from dynopt_ray.structure.preserve.transaction import Transaction

__all__ = [
    "CollectorPaused",
    "RandomState",
    "Surroundings",
    "Transaction",
    "extra_states",
    "from_stored",
    "has_extra_state",
    "mask_of",
    "masked_parameters",
    "recompute_weights",
    "set_mask",
    "set_masks",
    "sharing_memory",
    "storable_extra_state",
    "within",
]
