"""Check that a cluster and its disks have what a run needs, before the run starts."""

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynopt_ray.cluster.resources import check_gpus, sharing
from dynopt_ray.cluster.sessions.private_directory import place_for_ray
from dynopt_ray.errors import ClusterError, DynoptError
from dynopt_ray.journals import store_at

_STORAGE_S = 8.0


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        name: its address, or "this machine".
        cpus: number of CPUs that it offers.
        gpus: number of GPUs that it offers.
        resources: its custom resources: name -> amount.
        accelerators: the kinds of its GPUs, such as "H100".
        node_id: Ray's id of it; empty if Ray does not run there yet.
    """

    name: str
    cpus: float
    gpus: float
    resources: Mapping[str, float] = field(default_factory=dict)
    accelerators: tuple[str, ...] = ()
    node_id: str = ""

    @property
    def described(self) -> str:
        """What it offers, for messages."""
        custom = "".join(f", {amount:g} {name}" for name, amount in sorted(self.resources.items()))
        kinds = f" ({', '.join(self.accelerators)})" if self.accelerators else ""
        return f"{self.name}: {self.cpus:g} CPUs, {self.gpus:g} GPUs{kinds}{custom}"


@dataclass(frozen=True)
class ClusterNeed:
    """What a run needs from a cluster.

    Attributes:
        cpus: number of CPUs of its largest task or actor, which has to fit on one node.
        gpus: number of GPUs of that task or actor.
        accelerator_type: kind of GPU that the task or actor needs, such as "H100", or None.
        resources: custom resources that the task or actor reserves: name -> amount.
        total_cpus: number of CPUs that the run reserves at the same time, over all nodes.
        total_gpus: number of GPUs that the run reserves at the same time, over all nodes.
        storage: a directory or a URI for results and snapshots, or None.
        disk_bytes: free space needed there and for Ray's own files, in bytes.
    """

    cpus: float = 1
    gpus: float = 0
    accelerator_type: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    total_cpus: float = 0
    total_gpus: float = 0
    storage: str | os.PathLike[str] | None = None
    disk_bytes: int = 2**30

    def __post_init__(self) -> None:
        check_gpus("gpus", self.gpus)

    @property
    def actor_options(self) -> dict[str, Any]:
        """The options with which Ray reserves this for an actor."""
        kind = {"accelerator_type": self.accelerator_type} if self.accelerator_type else {}
        return {
            "num_cpus": self.cpus,
            "num_gpus": self._share_of_gpu,
            "resources": dict(self.resources),
            **kind,
        }

    @property
    def session_options(self) -> dict[str, Any]:
        """The arguments with which `session` checks that a cluster has this."""
        return {
            "task_cpus": self.cpus,
            "task_gpus": self.gpus,
            "accelerator_type": self.accelerator_type,
            "resources": self.resources,
            "total_cpus": self.total_cpus,
            "total_gpus": self.total_gpus,
        }

    @property
    def _share_of_gpu(self) -> float:
        """The GPUs to reserve: if it is a share of one, 1/n if n such shares fit on a GPU.

        Ray adds up what is left on the GPUs of a node. It would send a third share of 0.6 to a node
        of two GPUs, where it would wait, and not to one where a GPU is free.
        """
        if not 0 < self.gpus < 1:
            return self.gpus
        return int(1e4 / sharing(self.gpus)) / 1e4  # Ray counts in steps of 0.0001

    def room(self, node: Node) -> int:
        """Return how many such tasks a node has room for at once."""
        if self.accelerator_type and self.accelerator_type not in node.accelerators:
            return 0
        room = [node.cpus / self.cpus] if self.cpus else []
        if self.gpus > 1:
            room.append(node.gpus / self.gpus)
        elif self.gpus:
            # A task is on one GPU, so what is left of several GPUs does not add up.
            room.append(int(node.gpus) * sharing(self.gpus))
        room += [node.resources.get(name, 0) / n for name, n in self.resources.items() if n]
        return int(min(room, default=1) + 1e-9)

    @property
    def described(self) -> str:
        """What one task needs, for messages."""
        kind = f" of type {self.accelerator_type}" if self.accelerator_type else ""
        custom = "".join(f", {amount:g} {name}" for name, amount in sorted(self.resources.items()))
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs{kind}{custom}"


def this_machine() -> Node:
    """Return what a cluster on this machine offers: the CPUs this process may use, and all GPUs."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Node("this machine", float(cpus or 1), float(torch.cuda.device_count()))


def check_nodes(need: ClusterNeed, nodes: Iterable[Node]) -> None:
    """Refuse a task that fits on no node, because Ray would leave it pending for ever.

    Raises:
        ClusterError: no node has enough, or all together have not; the message says what each has.
    """
    nodes = list(nodes)
    found = "; ".join(node.described for node in nodes) or "no nodes"
    if not any(need.room(node) for node in nodes):
        raise ClusterError(
            f"one task needs {need.described}, but no node has all of it, so it would wait for "
            f"ever. Available: {found}. Reserve less per task, or add a node"
        )
    for kind, wanted, total in (
        ("CPUs", need.total_cpus, sum(node.cpus for node in nodes)),
        ("GPUs", need.total_gpus, sum(node.gpus for node in nodes)),
    ):
        if total < wanted:
            raise ClusterError(
                f"the run reserves {wanted:g} {kind} at the same time, but there are {total:g}, so "
                f"it would wait for ever. Available: {found}. Use fewer workers, or add a node"
            )


def check_disk(need: ClusterNeed) -> None:
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
        directory = os.fspath(need.storage)
        check_storage(directory)
        if "://" not in directory:
            places[Path(directory)] = "storage"
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


def check_storage(directory: str) -> None:
    """Write a file to a directory or URI, read it and delete it.

    Raises:
        ClusterError: one of these fails, or takes longer than a few seconds.
    """
    if "://" not in directory:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise unusable(directory, error.strerror or str(error)) from error
    reason = _within(_STORAGE_S, lambda: write_and_read(directory))
    if reason:
        raise unusable(directory, reason)


def write_and_read(directory: str) -> str:
    """Write, read and delete a file; return why this fails, or an empty text."""
    name, content = probe_name(), secrets.token_bytes(16)
    try:
        store = store_at(directory)
        store.put(name, content)
        try:
            read = store.get(name)
        finally:
            store.delete(name)
    except (DynoptError, OSError) as error:
        return str(error)
    return "" if read == content else "a file that was written there has another content"


def probe_name() -> str:
    """Return a new name of a file with which storage is tried."""
    return f"probes/{secrets.token_hex(8)}"


def unusable(directory: str, reason: str) -> ClusterError:
    """Return the error that says why storage cannot be used."""
    return ClusterError(
        f"storage {directory} cannot be written and read: {reason}; give a directory or a URI "
        "that every node can write to"
    )


def _within(seconds: float, action: Callable[[], str]) -> str:
    """Return what an action returns, or that it does not answer in time."""
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    # File systems behind a URI retry for minutes. The thread ends with the process.
    return told[0] if told else f"it does not answer within {seconds:g} s"
