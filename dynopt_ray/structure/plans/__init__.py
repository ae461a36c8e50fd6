"""Plans: edits as data, checked as a whole, then applied as a whole or not at all."""

from dynopt_ray.structure.plans.application import Receipt, apply_plan
from dynopt_ray.structure.plans.block_copies import HISTORY, redo
from dynopt_ray.structure.plans.edits import (
    Edit,
    Grow,
    Insert,
    Mask,
    Plan,
    Remove,
    Shrink,
    plan_from_json,
    plan_to_json,
)
from dynopt_ray.structure.plans.history import (
    HISTORIES,
    RESIZED,
    from_state,
    history_of,
    to_state,
)
from dynopt_ray.structure.plans.initialisation import fresh_tensors, seeded
from dynopt_ray.structure.plans.optimizer_checks import check_saved_state
from dynopt_ray.structure.plans.optimizer_devices import IMPLEMENTATION, StatePlaces
from dynopt_ray.structure.plans.optimizer_state import (
    Optimizers,
    check_optimizer,
    check_trains,
    each_optimizer,
)
from dynopt_ray.structure.plans.stages import check_plan

__all__ = [
    "HISTORIES",
    "HISTORY",
    "IMPLEMENTATION",
    "RESIZED",
    "Edit",
    "Grow",
    "Insert",
    "Mask",
    "Optimizers",
    "Plan",
    "Receipt",
    "Remove",
    "Shrink",
    "StatePlaces",
    "apply_plan",
    "check_optimizer",
    "check_plan",
    "check_saved_state",
    "check_trains",
    "each_optimizer",
    "fresh_tensors",
    "from_state",
    "history_of",
    "plan_from_json",
    "plan_to_json",
    "redo",
    "seeded",
    "to_state",
]
