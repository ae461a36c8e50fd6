from .address import check_reachable
from .connection import Session, alive_nodes, check_can_start, session
from .preflight import Node

__all__ = [
    "Node",
    "Session",
    "alive_nodes",
    "check_can_start",
    "check_reachable",
    "session",
]
