from .runner import adapted, add_curve, points, prepare, widths
from .spec import AdaptSettings, AdaptSpec

__all__ = [
    "AdaptSettings",
    "AdaptSpec",
    "adapted",
    "add_curve",
    "points",
    "prepare",
    "widths",
]
