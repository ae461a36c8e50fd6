from .prune_config import check_config
from .prune_trial import PruneTrial, rate_range

__all__ = ["PruneTrial", "check_config", "rate_range"]
