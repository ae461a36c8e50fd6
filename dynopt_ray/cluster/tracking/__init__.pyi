from .busy_slots import busy_share, slot_use
from .trackers import Tracker, TrackerLike, TrackerSink, make_trackers

__all__ = ["Tracker", "TrackerLike", "TrackerSink", "busy_share", "make_trackers", "slot_use"]
