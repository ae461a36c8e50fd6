from .runner import adapted, add_curve, points, widths
from .spec import KIND, AdaptSettings, AdaptSpec

__all__ = [
    "KIND",
    "AdaptSettings",
    "AdaptSpec",
    "adapted",
    "add_curve",
    "points",
    "widths",
]
