"""`session` starts or joins Ray, and ends what it started."""

import ipaddress
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from dynopt_ray.cluster.sessions.address import answering_address, found_address, is_this_machine
from dynopt_ray.cluster.sessions.authentication import check_token, use_token
from dynopt_ray.cluster.sessions.preflight import Need, Node, check_disk, check_nodes, this_machine
from dynopt_ray.cluster.sessions.private_directory import (
    check_length,
    place_for_ray,
    private_directory,
)
from dynopt_ray.cluster.sessions.processes import end, ray_processes
from dynopt_ray.cluster.sessions.ray_patches import init_ray, loopback_only, ray_environment
from dynopt_ray.errors import ClusterError

_NOT_SHIPPED = (".git", ".venv*", "venv", "__pycache__", "*.pyc", "runs", ".mypy_cache", "data")


@dataclass(frozen=True)
class Session:
    """A connection to Ray.

    Attributes:
        address: the address of the cluster, which `session(address)` accepts.
        nodes: the nodes of the cluster when the session began.
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
    """Provide Ray for the duration of a `with` block.

    Without an address (and without RAY_ADDRESS, which is set for jobs on a cluster), Ray is
    started on this machine. It is reachable from this machine only, uses token authentication,
    sends no usage reports, and has an object store of at most a tenth of the memory. Its files lie
    in a new directory in RAY_TMPDIR, or in the system's directory for temporary files, that no
    other user can enter. All its processes are ended and its files are removed at the end of the
    block, also after an exception or Ctrl-C.

    With an address, the block joins that cluster and only leaves it at the end. If the cluster is
    on another machine, the working directory is shipped to it. If this process is already
    connected to Ray, for example inside another session, that connection is used and nothing is
    ended.

    Args:
        address: "host:port", "ray://host:port" or "auto". None starts Ray on this machine.
        task_cpus: number of CPUs of the largest single task or actor that will run.
        task_gpus: number of GPUs of that task or actor; may be a fraction.
        storage: a directory for results. It must be writable and have enough free space.
        disk_bytes: free space needed there and for Ray's own files, in bytes.
        num_cpus: number of CPUs that a cluster started here offers. None offers all that this
            process may use.
        dashboard: whether a cluster started here runs Ray's dashboard, which is reachable from
            this machine only.

    Raises:
        ClusterError: there is no such cluster, or it lacks something that is needed. The error
            comes within seconds.

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
    files = ExitStack()
    try:
        if address is None:
            machine = this_machine()
            check_nodes(need, [Node(machine.name, num_cpus or machine.cpus, machine.gpus)])
            directory = files.enter_context(private_directory())
            _start(num_cpus or int(machine.cpus), int(machine.gpus), dashboard, directory)
        else:
            _join(address)
        is_up = True
        nodes = alive_nodes()
        check_nodes(need, nodes)
        yield Session(_address(), nodes, started=address is None)
    finally:
        started = ray_processes() - before
        ray.shutdown()
        # `ray.shutdown` does not end the processes of a start that was interrupted.
        end(started, grace_s=10 if is_up else 0)
        files.close()


def check_can_start() -> None:
    """Refuse to start Ray on this machine where that would fail. Start and write nothing.

    Raises:
        ClusterError: Ray's own files cannot be written, or there is neither a token nor a place
            for one.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return
    check_disk(Need())
    check_length(place_for_ray())
    check_token()


def _running(address: str | None, need: Need) -> Session:
    """Return a session for the connection that this process already has."""
    if address not in (None, "auto", _address()) and not address.startswith("ray://"):
        raise ClusterError(
            f"Ray is already connected to {_address()}, so this process cannot join {address}; "
            "end that session first"
        )
    nodes = alive_nodes()
    check_nodes(need, nodes)
    return Session(_address(), nodes, started=False)


def _start(num_cpus: int, num_gpus: int, dashboard: bool, directory: Path) -> None:
    use_token(starting=True)
    with loopback_only(True):
        init_ray(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=_object_store_bytes(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=str(directory),
            job_config=JobConfig(_py_driver_sys_path=_own_paths()),
        )


def _join(address: str) -> None:
    use_token(starting=False)
    address = found_address(address)
    ip = answering_address(address)
    elsewhere = not is_this_machine(ip)
    settings: dict[str, Any] = {"job_config": JobConfig(_py_driver_sys_path=_own_paths())}
    if elsewhere:
        shipped = {"working_dir": os.getcwd(), "excludes": list(_NOT_SHIPPED)}
        settings = {"runtime_env": shipped}
    loopback = ipaddress.ip_address(ip).is_loopback
    # Ray would retry for 20 s. A server that still refuses after 3 s is not just starting up.
    with loopback_only(loopback), ray_environment("RAY_gcs_server_port_wait_time_s", "3"):
        init_ray(address=address, **settings)


def _own_paths() -> list[str]:
    """The import paths other than installed packages; workers on this machine use them too."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platlib", "purelib"))
    return [
        os.path.abspath(p) for p in sys.path if os.path.isdir(p) and not p.startswith(installed)
    ]


def _object_store_bytes() -> int:
    """A tenth of the memory; at most 1 GiB or 80 % of free shared memory, but at least 80 MiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.exists() else memory
    return max(80 * 2**20, min(2**30, memory // 10, int(0.8 * free)))


def alive_nodes() -> tuple[Node, ...]:
    """Return the nodes of the cluster that this process is connected to."""
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
