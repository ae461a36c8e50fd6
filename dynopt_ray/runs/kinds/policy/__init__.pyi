from .runner import POLICY_FILE, check_environment, compared, learned, prepare
from .spec import PolicySpec, PolicyTraining

__all__ = [
    "POLICY_FILE",
    "PolicySpec",
    "PolicyTraining",
    "check_environment",
    "compared",
    "learned",
    "prepare",
]
