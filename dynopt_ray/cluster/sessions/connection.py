"""`session` starts or joins Ray, and ends what it started."""

import ipaddress
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.job_config import JobConfig

from dynopt_ray.cluster.sessions.address import answering_address, found_address, is_this_machine
from dynopt_ray.cluster.sessions.authentication import check_token, use_token
from dynopt_ray.cluster.sessions.dashboards import check_dashboard
from dynopt_ray.cluster.sessions.node_probe import ask_nodes, check_answers
from dynopt_ray.cluster.sessions.preflight import (
    ClusterNeed,
    Node,
    check_disk,
    check_nodes,
    this_machine,
)
from dynopt_ray.cluster.sessions.private_directory import (
    check_length,
    place_for_ray,
    private_directory,
)
from dynopt_ray.cluster.sessions.processes import end, ray_processes
from dynopt_ray.cluster.sessions.ray_patches import init_ray, loopback_only, ray_environment
from dynopt_ray.errors import ClusterError

NOT_SHIPPED = (".git", ".venv*", "venv", "__pycache__", "*.pyc", "runs", ".mypy_cache", "data")
"""What of the working directory is not sent to a cluster."""

_ACCELERATOR = "accelerator_type:"
_OTHER_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory", "node:", _ACCELERATOR)


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
    accelerator_type: str | None = None,
    resources: Mapping[str, float] | None = None,
    total_cpus: float = 0,
    total_gpus: float = 0,
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
    on another machine, the working directory is shipped to it. All nodes are asked for their
    versions and whether they can use the storage. If this process is already connected to Ray, for
    example inside another session, that connection is used and nothing is ended.

    Args:
        address: "host:port", "ray://host:port" or "auto". None starts Ray on this machine, even if
            another cluster runs on it.
        task_cpus: number of CPUs of the largest single task or actor that will run.
        task_gpus: number of GPUs of that task or actor; may be a fraction.
        accelerator_type: kind of GPU that it needs, such as "H100".
        resources: custom resources that it reserves: name -> amount.
        total_cpus: number of CPUs that are reserved at the same time, over all nodes. A cluster
            started here offers at least as many.
        total_gpus: number of GPUs that are reserved at the same time, over all nodes.
        storage: a directory or a URI for results. It must be writable, readable and have enough
            free space. Nodes that see it must be able to write to it too.
        disk_bytes: free space needed there and for Ray's own files, in bytes.
        num_cpus: number of CPUs that a cluster started here offers. None offers all that this
            process may use.
        dashboard: whether a cluster started here runs Ray's dashboard, which is reachable from
            this machine only.

    Raises:
        ValueError: `task_gpus` is a fraction above 1.
        ClusterError: there is no such cluster, it lacks something that is needed, or its dashboard
            is open to the network without a token. The error comes within seconds.

    Example:
        >>> with session(task_cpus=2, storage="runs") as here:  # doctest: +SKIP
        ...     print(here.address, here.started)
        127.0.0.1:40123 True
    """
    need = ClusterNeed(
        cpus=task_cpus,
        gpus=task_gpus,
        accelerator_type=accelerator_type,
        resources=resources or {},
        total_cpus=total_cpus,
        total_gpus=total_gpus,
        storage=storage,
        disk_bytes=disk_bytes,
    )
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
            cpus = num_cpus or int(max(machine.cpus, math.ceil(total_cpus)))
            # Ray finds out the kinds of GPUs when it starts, and how many parts of them (MIG).
            known = replace(need, accelerator_type=None) if machine.gpus else need
            known = replace(known, gpus=min(need.gpus, machine.gpus or need.gpus), total_gpus=0)
            check_nodes(known, [replace(machine, cpus=cpus)])
            directory = files.enter_context(private_directory())
            _start(cpus, None if machine.gpus else 0, dashboard, directory)
        else:
            _join(address)
        is_up = True
        nodes = alive_nodes()
        check_nodes(need, nodes)
        if address is not None:
            answers = ask_nodes(nodes, storage)
            check_dashboard(answers[0][1]["dashboard"])
            check_answers(answers, storage)
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
    check_disk(ClusterNeed())
    check_length(place_for_ray())
    check_token()


def _running(address: str | None, need: ClusterNeed) -> Session:
    """Return a session for the connection that this process already has."""
    if address not in (None, "auto", _address()) and not address.startswith("ray://"):
        raise ClusterError(
            f"Ray is already connected to {_address()}, so this process cannot join {address}; "
            "end that session first"
        )
    nodes = alive_nodes()
    check_nodes(need, nodes)
    return Session(_address(), nodes, started=False)


def _start(num_cpus: int, num_gpus: int | None, dashboard: bool, directory: Path) -> None:
    use_token(starting=True)
    with loopback_only(True):
        init_ray(
            # Without it, Ray would join a cluster that runs on this machine, or would fail at the
            # address that a killed one has left behind.
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=_object_store_bytes(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=str(directory),
            job_config=_job_config(),
        )


def _join(address: str) -> None:
    use_token(starting=False)
    address = found_address(address)
    ip = answering_address(address)
    elsewhere = not is_this_machine(ip)
    if elsewhere and RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ:
        shipped = {"working_dir": os.getcwd(), "excludes": list(NOT_SHIPPED)}
        settings: dict[str, Any] = {"runtime_env": shipped}
    elif address.startswith("ray://"):
        # Ray's client sends its settings as JSON, which a JobConfig is not.
        paths = os.pathsep.join(_own_paths())
        settings = {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
    else:
        # What a job brought along is added to this by Ray.
        settings = {"job_config": _job_config()}
    loopback = ipaddress.ip_address(ip).is_loopback
    # Ray would retry for 20 s. A server that still refuses after 3 s is not just starting up.
    with loopback_only(loopback), ray_environment("RAY_gcs_server_port_wait_time_s", "3"):
        init_ray(address=address, **settings)


def _job_config() -> JobConfig:
    # A worker inserts the paths at the front of its own one by one, which reverses their order.
    return JobConfig(_py_driver_sys_path=_own_paths()[::-1])


def _own_paths() -> list[str]:
    """The import paths other than installed packages; workers on this machine use them too."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platlib", "purelib"))
    # An empty path stands for the working directory.
    paths = [os.path.abspath(path) for path in sys.path]
    return [path for path in paths if os.path.isdir(path) and not path.startswith(installed)]


def _object_store_bytes() -> int:
    """A tenth of the memory; at most 1 GiB or 80 % of free shared memory, but at least 80 MiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.exists() else memory
    return max(80 * 2**20, min(2**30, memory // 10, int(0.8 * free)))


def alive_nodes() -> tuple[Node, ...]:
    """Return the nodes of the cluster that this process is connected to."""
    return tuple(
        _node(node)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    )


def _node(described: Mapping[str, Any]) -> Node:
    offered: Mapping[str, float] = described["Resources"]
    return Node(
        described["NodeManagerAddress"],
        offered.get("CPU", 0.0),
        offered.get("GPU", 0.0),
        resources={k: n for k, n in offered.items() if not k.startswith(_OTHER_RESOURCES)},
        accelerators=tuple(
            sorted(k.removeprefix(_ACCELERATOR) for k in offered if k.startswith(_ACCELERATOR))
        ),
        node_id=described["NodeID"],
    )


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)
