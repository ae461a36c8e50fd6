from .runner import add_best_curve, check_plugins, front, run_search, search_points
from .spec import KIND, SearchSettings, SearchSpace, SearchSpec, check_space

__all__ = [
    "KIND",
    "SearchSettings",
    "SearchSpace",
    "SearchSpec",
    "add_best_curve",
    "check_plugins",
    "check_space",
    "front",
    "run_search",
    "search_points",
]
