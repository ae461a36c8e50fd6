from .driver import search
from .log import TrialLog
from .prune_trial import PruneTrial, check_config, rate_range
from .result import SearchResult, pareto_front
from .search_setup import check_limits, draws, make_scheduler
from .space import Point, Range, Space
from .trial import Measurement

__all__ = [
    "Measurement",
    "Point",
    "PruneTrial",
    "Range",
    "SearchResult",
    "Space",
    "TrialLog",
    "check_config",
    "check_limits",
    "draws",
    "make_scheduler",
    "pareto_front",
    "rate_range",
    "search",
]
