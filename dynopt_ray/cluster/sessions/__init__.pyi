from .address import check_reachable
from .connection import Session, alive_nodes, session
from .preflight import Node

__all__ = [
    "Node",
    "Session",
    "alive_nodes",
    "check_reachable",
    "session",
]
