from .address import check_reachable
from .connection import Session, check_can_start, session
from .preflight import Node

__all__ = [
    "Node",
    "Session",
    "check_can_start",
    "check_reachable",
    "session",
]
