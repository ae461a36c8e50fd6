from .runner import POLICY_FILE, check_environment, run_comparison, run_training
from .spec import KIND, PolicySpec, PolicyTraining, policy_work

__all__ = [
    "KIND",
    "POLICY_FILE",
    "PolicySpec",
    "PolicyTraining",
    "check_environment",
    "policy_work",
    "run_comparison",
    "run_training",
]
