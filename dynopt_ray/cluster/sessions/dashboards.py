"""Refuse clusters whose dashboard lets anybody on the network run code."""

import ipaddress
import os
import urllib.error
import urllib.request

from dynopt_ray.errors import ClusterError

_ANSWER_S = 3.0


def check_dashboard(dashboard: str) -> None:
    """Refuse a cluster whose dashboard is open to the network and asks for no token.

    A dashboard that only its own machine can reach, or that cannot be reached from here, passes.
    So does every dashboard if the user has set RAY_AUTH_MODE=disabled.

    Args:
        dashboard: its address, host:port; empty if there is none.

    Raises:
        ClusterError: it answers a request without a token.
    """
    if not dashboard or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    if _is_loopback(dashboard.rpartition(":")[0].strip("[]")) or not answers_without_token(
        dashboard
    ):
        return
    raise ClusterError(
        f"the dashboard of the cluster at {dashboard} is open to the network and asks for no "
        "token, so anybody who reaches it can run any code on the cluster. Start the cluster with "
        "RAY_AUTH_MODE=token on every node, or with --dashboard-host 127.0.0.1; or set "
        "RAY_AUTH_MODE=disabled here if only you can reach its network"
    )


def answers_without_token(dashboard: str) -> bool:
    """Whether a dashboard lists its jobs to somebody without a token."""
    request = urllib.request.Request(f"http://{dashboard}/api/jobs/")
    try:
        # No proxy: a cluster's own addresses mean nothing to it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_ANSWER_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
