from .runner import POLICY_FILE, check_environment, compared, learned, prepare
from .spec import PolicySettings, PolicySpec

__all__ = [
    "POLICY_FILE",
    "PolicySettings",
    "PolicySpec",
    "check_environment",
    "compared",
    "learned",
    "prepare",
]
