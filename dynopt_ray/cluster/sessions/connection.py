"""The one place that starts or joins Ray, and that ends what it started."""

import ipaddress
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from dynopt_ray.cluster.sessions.address import answering_address, found_address, is_this_machine
from dynopt_ray.cluster.sessions.authentication import use_token
from dynopt_ray.cluster.sessions.preflight import Need, Node, check_disk, check_nodes, this_machine
from dynopt_ray.cluster.sessions.processes import end, ray_processes
from dynopt_ray.cluster.sessions.ray_patches import init_ray, loopback_only, ray_environment
from dynopt_ray.errors import ClusterError

_NOT_SHIPPED = (".git", ".venv*", "venv", "__pycache__", "*.pyc", "runs", ".mypy_cache", "data")


@dataclass(frozen=True)
class Session:
    """A connection to Ray.

    Attributes:
        address: of the cluster, as `session(address)` takes it.
        nodes: the machines of the cluster when the session began.
        started: whether this session started the cluster and will end it.
    """

    address: str
    nodes: tuple[Node, ...]
    started: bool


@contextmanager
def session(
    address: str | None = None,
    *,
    task_cpus: float = 1,
    task_gpus: float = 0,
    storage: str | os.PathLike[str] | None = None,
    disk_bytes: int = 2**30,
    num_cpus: int | None = None,
    dashboard: bool = False,
) -> Iterator[Session]:
    """Ray for the length of a `with` block.

    Without an address (and without RAY_ADDRESS, which jobs on a cluster have) it starts Ray on
    this machine: reachable from this machine only, with token authentication, without usage
    reports, with an object store of at most a tenth of the memory. At the end of the block,
    however it comes, those processes are gone. With an address it joins that cluster and only
    leaves it at the end; the working directory is shipped when the cluster is elsewhere. Inside
    another session, or where Ray runs already, it uses that and ends nothing.

    Args:
        address: "host:port", "ray://host:port" or "auto"; None starts Ray here.
        task_cpus: CPUs of the largest single task or actor to come.
        task_gpus: GPUs of the same; may be a fraction.
        storage: a directory for results; checked for being writable and having room.
        disk_bytes: the room needed there and for Ray's own files.
        num_cpus: how many CPUs a cluster started here offers; None is all this process may use.
        dashboard: whether a cluster started here has Ray's dashboard, on this machine only.

    Raises:
        ClusterError: there is no such cluster, or it lacks something; known within seconds.

    Example:
        >>> with session(task_cpus=2, storage="runs") as here:  # doctest: +SKIP
        ...     print(here.address, here.started)
        127.0.0.1:40123 True
    """
    need = Need(task_cpus, task_gpus, None if storage is None else Path(storage), disk_bytes)
    check_disk(need)
    address = address or os.environ.get("RAY_ADDRESS") or None
    address = None if address == "local" else address
    if ray.is_initialized():
        yield _running(address, need)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = ray_processes()
    is_up = False
    try:
        if address is None:
            here = this_machine()
            check_nodes(need, [Node(here.name, num_cpus or here.cpus, here.gpus)])
            _start(num_cpus or int(here.cpus), int(here.gpus), dashboard)
        else:
            _join(address)
        is_up = True
        nodes = _nodes()
        check_nodes(need, nodes)
        yield Session(_address(), nodes, started=address is None)
    finally:
        started = ray_processes() - before
        ray.shutdown()
        # What an interrupted start leaves behind, `ray.shutdown` does not know.
        end(started, grace_s=10 if is_up else 0)


def _running(address: str | None, need: Need) -> Session:
    """The session that runs already."""
    if address not in (None, "auto", _address()) and not address.startswith("ray://"):
        raise ClusterError(
            f"Ray is already connected to {_address()}, so this process cannot join {address}; "
            "end that session first"
        )
    nodes = _nodes()
    check_nodes(need, nodes)
    return Session(_address(), nodes, started=False)


def _start(num_cpus: int, num_gpus: int, dashboard: bool) -> None:
    use_token(starting=True)
    with loopback_only(True):
        init_ray(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=_object_store_bytes(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            job_config=JobConfig(_py_driver_sys_path=_own_paths()),
        )


def _join(address: str) -> None:
    use_token(starting=False)
    address = found_address(address)
    found = answering_address(address)
    elsewhere = not is_this_machine(found)
    settings: dict[str, Any] = {"job_config": JobConfig(_py_driver_sys_path=_own_paths())}
    if elsewhere:
        ship = {"working_dir": os.getcwd(), "excludes": list(_NOT_SHIPPED)}
        settings = {"runtime_env": ship}
    loopback = ipaddress.ip_address(found).is_loopback
    # Ray would try for 20 s; whatever refuses us three times is not starting up.
    with loopback_only(loopback), ray_environment("RAY_gcs_server_port_wait_time_s", "3"):
        init_ray(address=address, **settings)


def _own_paths() -> list[str]:
    """Where this process finds modules beyond the installed ones; workers here look there too."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platlib", "purelib"))
    return [
        os.path.abspath(p) for p in sys.path if os.path.isdir(p) and not p.startswith(installed)
    ]


def _object_store_bytes() -> int:
    """A tenth of the memory, at most 1 GiB and what shared memory has room for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.exists() else memory
    return max(80 * 2**20, min(2**30, memory // 10, int(0.8 * free)))


def _nodes() -> tuple[Node, ...]:
    return tuple(
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    )


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)
