"""State that edits and forward passes must preserve: masks, modes, random state, torch settings."""

from dynopt_ray.structure.preserve.caches import (
    ABSENT,
    emptied,
    filled_caches,
    has_tensors,
    saved_value,
    set_value,
    tensors_within,
    value_of,
)
from dynopt_ray.structure.preserve.collector import CollectorPaused
from dynopt_ray.structure.preserve.contents import Cache, containers_of, set_contents
from dynopt_ray.structure.preserve.entered_twice import within
from dynopt_ray.structure.preserve.masks import mask_of, masked_parameters, set_mask
from dynopt_ray.structure.preserve.surroundings import RandomState, Surroundings
from dynopt_ray.structure.preserve.torch_state import ThreadState
from dynopt_ray.structure.preserve.transaction import Transaction

__all__ = [
    "ABSENT",
    "Cache",
    "CollectorPaused",
    "RandomState",
    "Surroundings",
    "ThreadState",
    "Transaction",
    "containers_of",
    "emptied",
    "filled_caches",
    "has_tensors",
    "mask_of",
    "masked_parameters",
    "saved_value",
    "set_contents",
    "set_mask",
    "set_value",
    "tensors_within",
    "value_of",
    "within",
]
