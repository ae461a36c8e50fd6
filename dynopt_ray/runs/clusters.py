"""Provide the Ray cluster that a run needs, checked before any other work of the run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dynopt_ray.runs.kinds import KINDS
from dynopt_ray.runs.progress import Progress
from dynopt_ray.runs.spec import Spec

if TYPE_CHECKING:
    from dynopt_ray.cluster import Session


@contextmanager
def cluster_for(
    spec: Spec, *, address: str | None, storage: Path, progress: Progress
) -> Iterator[str | None]:
    """Provide Ray for the duration of a `with` block if a run needs it, and yield its address.

    Everything that the run needs from the cluster is checked first, so that a run does not fail
    after it has trained a network for an hour.

    Args:
        spec: the spec of the run.
        address: the address of the cluster to join. None starts one on this machine.
        storage: the run directory.
        progress: shows what was found.

    Raises:
        ClusterError: there is no such cluster, or it lacks what the run needs.
    """
    declared = KINDS[spec.kind].need
    need = None if declared is None else declared(spec)
    if need is None:
        yield address
        return
    from dynopt_ray.cluster import session

    with ExitStack() as stack:
        with progress.stage("cluster") as stage:
            joined = stack.enter_context(session(address, **need.session_options, storage=storage))
            stage.result(_found(joined))
        yield joined.address


def _found(joined: "Session") -> str:
    how = "started on this machine" if joined.started else f"joined {joined.address}"
    cpus = sum(node.cpus for node in joined.nodes)
    gpus = sum(node.gpus for node in joined.nodes)
    nodes = "1 node" if len(joined.nodes) == 1 else f"{len(joined.nodes)} nodes"
    return f"{how}: {nodes}, {cpus:g} CPUs, {gpus:g} GPUs"
