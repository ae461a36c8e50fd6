from .driver import search
from .log import TrialLog
from .plan import beginning_with, count_trials, make_scheduler, make_searcher
from .prune_trial import PruneTrial, check_config, rate_range
from .result import SearchResult, pareto_front
from .space import Flat, Range, Space
from .trial import Measurement

__all__ = [
    "Flat",
    "Measurement",
    "PruneTrial",
    "Range",
    "SearchResult",
    "Space",
    "TrialLog",
    "beginning_with",
    "check_config",
    "count_trials",
    "make_scheduler",
    "make_searcher",
    "pareto_front",
    "rate_range",
    "search",
]
