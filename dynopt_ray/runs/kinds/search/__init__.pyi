from .runner import add_best_curve, check_packs, run_search
from .searched import check_plugins, front
from .spec import (
    KIND,
    SearchSettings,
    SearchSpace,
    SearchSpec,
    check_space,
    search_need,
    search_work,
)
from .tables import rebuild, trial_points

__all__ = [
    "KIND",
    "SearchSettings",
    "SearchSpace",
    "SearchSpec",
    "add_best_curve",
    "check_packs",
    "check_plugins",
    "check_space",
    "front",
    "rebuild",
    "run_search",
    "search_need",
    "search_work",
    "trial_points",
]
