from .address import check_reachable
from .connection import Session, session
from .preflight import Node

__all__ = [
    "Node",
    "Session",
    "check_reachable",
    "session",
]
