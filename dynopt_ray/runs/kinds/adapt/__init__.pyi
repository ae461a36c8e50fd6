from .runner import add_curve, points, run_adaptation, widths
from .spec import KIND, AdaptSettings, AdaptSpec

__all__ = [
    "KIND",
    "AdaptSettings",
    "AdaptSpec",
    "add_curve",
    "points",
    "run_adaptation",
    "widths",
]
