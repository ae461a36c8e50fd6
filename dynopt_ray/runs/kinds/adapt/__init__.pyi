from .runner import add_curve, points, run_adaptation, widths
from .spec import KIND, AdaptSettings, AdaptSpec, adaptation_work

__all__ = [
    "KIND",
    "AdaptSettings",
    "AdaptSpec",
    "adaptation_work",
    "add_curve",
    "points",
    "run_adaptation",
    "widths",
]
