from .runner import prepare
from .spec import DemoSpec

__all__ = [
    "DemoSpec",
    "prepare",
]
