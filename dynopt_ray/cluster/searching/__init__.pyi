from .driver import search
from .earlier import earlier_trials
from .log import TrialLog
from .objectives import check_objective
from .prune_trial import PruneTrial, check_config, rate_range
from .result import SearchResult, pareto_front
from .search_setup import check_configurations, check_limits, draws, make_scheduler
from .space import Point, Range, Space
from .storage import SearchStorage

__all__ = [
    "Point",
    "PruneTrial",
    "Range",
    "SearchResult",
    "SearchStorage",
    "Space",
    "TrialLog",
    "check_config",
    "check_configurations",
    "check_limits",
    "check_objective",
    "draws",
    "earlier_trials",
    "make_scheduler",
    "pareto_front",
    "rate_range",
    "search",
]
