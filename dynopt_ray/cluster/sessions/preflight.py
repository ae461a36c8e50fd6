"""Check that a cluster and its disks have what a run needs, before the run starts."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dynopt_ray.cluster.sessions.private_directory import place_for_ray
from dynopt_ray.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        name: its address, or "this machine".
        cpus: number of CPUs that it offers.
        gpus: number of GPUs that it offers.
    """

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Need:
    """What a run needs.

    Attributes:
        cpus: number of CPUs of its largest task or actor, which has to fit on one node.
        gpus: number of GPUs of that task or actor.
        storage: a directory for results and snapshots, or None.
        disk_bytes: free space needed there and for Ray's own files, in bytes.
    """

    cpus: float = 1
    gpus: float = 0
    storage: Path | None = None
    disk_bytes: int = 2**30


def this_machine() -> Node:
    """Return what a cluster on this machine offers: the CPUs this process may use, and all GPUs."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Node("this machine", float(cpus or 1), float(torch.cuda.device_count()))


def check_nodes(need: Need, nodes: Iterable[Node]) -> None:
    """Refuse a task that fits on no node, because Ray would leave it pending for ever.

    Raises:
        ClusterError: no node has enough; the message says what each node has.
    """
    nodes = list(nodes)
    if any(node.cpus >= need.cpus and node.gpus >= need.gpus for node in nodes):
        return
    found = "; ".join(f"{n.name}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes) or "no nodes"
    raise ClusterError(
        f"one task needs {need.cpus:g} CPUs and {need.gpus:g} GPUs, but no node has both, so it "
        f"would wait for ever. Available: {found}. Reserve less per task, or add a node"
    )


def check_disk(need: Need) -> None:
    """Refuse storage that cannot be written to, and disks that are nearly full.

    Raises:
        ClusterError: a directory cannot be used; the message says which one and why.
    """
    place = place_for_ray()
    if not place.is_dir():
        what = "does not exist" if not place.exists() else "is not a directory"
        raise ClusterError(
            f"RAY_TMPDIR is {place}, which {what}, so Ray has no place for its own files; "
            "create it, set RAY_TMPDIR to a directory, or unset it"
        )
    places = {place: "Ray's own files"}
    if need.storage is not None:
        places[need.storage] = "storage"
        try:
            need.storage.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=need.storage):
                pass
        except OSError as error:
            raise ClusterError(
                f"storage {need.storage} cannot be written: {error.strerror}; give a directory "
                "that every node can write to"
            ) from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise ClusterError(
            f"{place} cannot be written, so Ray has no place for its own files; set RAY_TMPDIR to "
            "a directory that can be"
        )
    for place, use in places.items():
        free = shutil.disk_usage(place).free
        if free < need.disk_bytes:
            raise ClusterError(
                f"{place} ({use}) has {free / 2**30:.1f} GiB free, but "
                f"{need.disk_bytes / 2**30:.1f} GiB are needed; free some space or choose another "
                "directory"
            )
