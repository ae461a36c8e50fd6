from .runner import prepare
from .spec import PruneSpec, TargetSpec

__all__ = [
    "PruneSpec",
    "TargetSpec",
    "prepare",
]
