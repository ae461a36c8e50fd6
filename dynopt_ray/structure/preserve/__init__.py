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
from dynopt_ray.structure.preserve.computed_weights import recompute_weights
from dynopt_ray.structure.preserve.contents import Cache, containers_of, set_contents
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
from dynopt_ray.structure.preserve.switches import update_switches
from dynopt_ray.structure.preserve.torch_state import ThreadState
from dynopt_ray.structure.preserve.transaction import Transaction
from dynopt_ray.structure.preserve.written import note_written, written_parameters

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
    "extra_states",
    "filled_caches",
    "from_stored",
    "has_extra_state",
    "has_tensors",
    "mask_of",
    "masked_parameters",
    "note_written",
    "recompute_weights",
    "saved_value",
    "set_contents",
    "set_mask",
    "set_masks",
    "set_value",
    "sharing_memory",
    "storable_extra_state",
    "tensors_within",
    "update_switches",
    "value_of",
    "within",
    "written_parameters",
]
