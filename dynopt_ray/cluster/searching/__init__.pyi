from .driver import search
from .earlier import earlier_trials
from .log import TrialLog
from .objectives import check_objective
from .pack_size import PackSize, check_pack, check_size
from .result import SearchResult, pareto_front
from .search_setup import check_configurations, check_limits, draws, make_scheduler
from .space import Point, Range, Space
from .storage import SearchStorage

__all__ = [
    "PackSize",
    "Point",
    "Range",
    "SearchResult",
    "SearchStorage",
    "Space",
    "TrialLog",
    "check_configurations",
    "check_limits",
    "check_objective",
    "check_pack",
    "check_size",
    "draws",
    "earlier_trials",
    "make_scheduler",
    "pareto_front",
    "search",
]
