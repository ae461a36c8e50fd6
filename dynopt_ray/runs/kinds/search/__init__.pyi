from .runner import add_best_curve, check_plugins, front, prepare, search_points, searched
from .spec import SearchSettings, SearchSpace, SearchSpec, check_space

__all__ = [
    "SearchSettings",
    "SearchSpace",
    "SearchSpec",
    "add_best_curve",
    "check_plugins",
    "check_space",
    "front",
    "prepare",
    "search_points",
    "searched",
]
