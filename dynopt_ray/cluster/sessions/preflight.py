"""What a run needs and what a cluster has, compared before anything waits for it."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dynopt_ray.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        name: its address, or "this machine".
        cpus: the CPUs it offers.
        gpus: the GPUs it offers.
    """

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Need:
    """What a run needs.

    Attributes:
        cpus: CPUs of its largest task or actor; that has to fit on one node.
        gpus: GPUs of the same.
        storage: a directory for results and snapshots, or None.
        disk_bytes: room needed there and for Ray's own files.
    """

    cpus: float = 1
    gpus: float = 0
    storage: Path | None = None
    disk_bytes: int = 2**30


def this_machine() -> Node:
    """What a cluster on this machine would offer: the CPUs this process may use, and its GPUs."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Node("this machine", float(cpus or 1), float(torch.cuda.device_count()))


def check_nodes(need: Need, nodes: Iterable[Node]) -> None:
    """Refuse what Ray would leave in PENDING for ever: a task that fits on no node.

    Raises:
        ClusterError: no node has enough; says what there is.
    """
    nodes = list(nodes)
    if any(node.cpus >= need.cpus and node.gpus >= need.gpus for node in nodes):
        return
    found = "; ".join(f"{n.name}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes) or "no nodes"
    raise ClusterError(
        f"one task needs {need.cpus:g} CPUs and {need.gpus:g} GPUs, but no node has both, so it "
        f"would wait for ever. There is: {found}. Ask for less per task, or add a node"
    )


def check_disk(need: Need) -> None:
    """Refuse storage that cannot be written or is nearly full.

    Raises:
        ClusterError: which directory, and what is wrong with it.
    """
    places = {Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())): "Ray's own files"}
    if need.storage is not None:
        places[need.storage] = "storage"
        try:
            need.storage.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=need.storage):
                pass
        except OSError as error:
            raise ClusterError(
                f"storage {need.storage} cannot be written: {error.strerror}; give a directory "
                "that every node can write"
            ) from error
    for place, use in places.items():
        free = shutil.disk_usage(place).free
        if free < need.disk_bytes:
            raise ClusterError(
                f"{place} ({use}) has {free / 2**30:.1f} GiB free, {need.disk_bytes / 2**30:.1f} "
                "are needed; make room or choose another place"
            )
