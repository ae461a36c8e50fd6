"""The one place that starts or joins Ray, and that ends what it started."""

import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray.job_config import JobConfig

from dynopt_ray.cluster.authentication import use_token
from dynopt_ray.cluster.preflight import Need, Node, check_disk, check_nodes, this_machine
from dynopt_ray.cluster.processes import end, ray_processes
from dynopt_ray.errors import ClusterError

_CONNECT_S = 5.0
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


def check_reachable(address: str) -> None:
    """Refuse an address where nobody answers, without joining.

    Raises:
        ClusterError: nothing takes connections there, or it is no address.
    """
    if address not in ("auto", "local"):
        _answering(address)


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
    with _loopback_only(True):
        _init(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=_object_store_bytes(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            job_config=JobConfig(_py_driver_sys_path=_own_paths()),
        )


def _join(address: str) -> None:
    use_token(starting=False)
    if address == "auto":
        try:
            address = services.get_ray_address_from_environment("auto", None)
        except ConnectionError as error:
            raise ClusterError(
                "no cluster runs on this machine; leave the address out to start one, or give the "
                "address of one elsewhere"
            ) from error
    found = _answering(address)
    elsewhere = not _is_this_machine(found)
    settings: dict[str, Any] = {"job_config": JobConfig(_py_driver_sys_path=_own_paths())}
    if elsewhere:
        ship = {"working_dir": os.getcwd(), "excludes": list(_NOT_SHIPPED)}
        settings = {"runtime_env": ship}
    loopback = ipaddress.ip_address(found).is_loopback
    # Ray would try for 20 s; whatever refuses us three times is not starting up.
    with _loopback_only(loopback), _environment("RAY_gcs_server_port_wait_time_s", "3"):
        _init(address=address, **settings)


def _own_paths() -> list[str]:
    """Where this process finds modules beyond the installed ones; workers here look there too."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platlib", "purelib"))
    return [
        os.path.abspath(p) for p in sys.path if os.path.isdir(p) and not p.startswith(installed)
    ]


def _answering(address: str) -> str:
    """The IP address of the machine at an address, where something takes connections."""
    try:
        with socket.create_connection(_split(address), timeout=_CONNECT_S) as connection:
            return str(connection.getpeername()[0])
    except OSError as error:
        raise ClusterError(
            f"no cluster answers at {address}: {error}; check the address, and that the head node "
            "runs and may be reached from here"
        ) from error


def _init(**settings: Any) -> None:
    try:
        with _own_sigterm():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as e:
        if "address" not in settings:
            raise ClusterError(f"Ray could not be started on this machine: {e}") from e
        raise ClusterError(
            f"could not join a cluster at {settings['address']}: {e}. If one runs there, it has "
            "another token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) or another "
            f"version of Ray than {ray.__version__}"
        ) from e


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's handler of SIGTERM: Ray's would dump a stack and abort."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _loopback_only(enabled: bool) -> Iterator[None]:
    """Let Ray's servers listen on 127.0.0.1 alone.

    Ray replaces a loopback address by the machine's own wherever it supports clusters, and then
    listens on every interface. The switch that it has for macOS keeps 127.0.0.1.
    """
    if not enabled:
        yield
        return
    constant = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # The servers read the variable, this process has read it already.
        with _environment("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


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


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"{address!r} is not the address of a cluster; write 'host:6379', "
            "'ray://host:10001' or 'auto'"
        )
    return host.strip("[]"), int(port)


def _is_this_machine(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            # Only an address of this machine can be listened on.
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
