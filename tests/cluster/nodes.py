"""A cluster of several nodes on this machine, with GPUs that exist on paper only."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from dynopt_ray.cluster.sessions.authentication import use_token
from dynopt_ray.cluster.sessions.processes import end, ray_processes
from dynopt_ray.cluster.sessions.ray_patches import loopback_only, ray_environment

_QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A dead node is noticed after 5 s and not after 35 s.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "2",
}

NODE: dict[str, Any] = {"num_cpus": 4, "num_gpus": 2, "object_store_memory": 80 * 2**20}
"""What a node of the tests has."""


class Nodes:
    """The nodes of a cluster; see `running_nodes`.

    Attributes:
        address: what drivers join.
        num_replaced: number of dead nodes that were replaced.
    """

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                **{**NODE, "num_cpus": 0, "num_gpus": 0},
                "include_dashboard": False,
            },
            shutdown_at_exit=False,  # its handlers of signals would allow no threads to add nodes
        )
        self.address: str = self._cluster.address
        self.num_replaced = 0

    def add(self, **resources: Any) -> Any:
        """Start a node and wait until it has joined."""
        return self._cluster.add_node(**{**NODE, **resources})

    def workers(self) -> list[Any]:
        """Return the nodes on which trials run."""
        return sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id)

    def kill(self, node: Any) -> None:
        """End a node as if its machine lost power."""
        # `node.kill_raylet()` would also strike it off the list in which `replace_dead` looks.
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def replace_dead(self) -> None:
        """Start a node for each that has died since the last call."""
        dead = [
            node
            for node in self._cluster.worker_nodes
            if "raylet" in {name for name, _ in node.dead_processes()}
        ]
        for node in dead:
            self._cluster.remove_node(node, allow_graceful=False)
            self.add()
            self.num_replaced += 1

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Replace nodes that die, for the duration of a `with` block."""
        is_over = threading.Event()

        def replace() -> None:
            while not is_over.wait(0.2):
                self.replace_dead()

        with ThreadPoolExecutor(1) as executor:
            replacing = executor.submit(replace)
            try:
                yield
            finally:
                is_over.set()
            replacing.result()

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def running_nodes(num_nodes: int = 2, **resources: Any) -> Iterator[Nodes]:
    """Provide a cluster that is reachable from this machine only; end it, and nothing else.

    Its files are in a directory of their own, so other clusters on this machine do not find it.
    """
    before = ray_processes()
    # Not below pytest's directories: the paths of sockets have at most 107 characters.
    folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name, value in {**_QUICK, "RAY_TMPDIR": folder}.items():
            stack.enter_context(ray_environment(name, value))
        stack.enter_context(loopback_only(True))
        use_token(starting=True)
        nodes = Nodes()
        try:
            for _ in range(num_nodes):
                nodes.add(**resources)
            yield nodes
        finally:
            ray.shutdown()
            started = ray_processes() - before
            nodes.close()
            end(started, grace_s=5)


def pid_of(where: str) -> int:
    """Return the process id in a record's `where`."""
    return int(where.rpartition("process ")[2].rstrip(")"))
