from .address import check_accepts, check_reachable
from .authentication import use_token
from .connection import NOT_SHIPPED, Session, alive_nodes, check_can_start, session
from .preflight import ClusterNeed, Node, check_nodes, check_storage, this_machine

__all__ = [
    "NOT_SHIPPED",
    "ClusterNeed",
    "Node",
    "Session",
    "alive_nodes",
    "check_accepts",
    "check_can_start",
    "check_nodes",
    "check_reachable",
    "check_storage",
    "session",
    "this_machine",
    "use_token",
]
