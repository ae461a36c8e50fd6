"""Each session runs in a process of its own, so that tests can see what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from dynopt_ray.cluster import session
from dynopt_ray.cluster.sessions.processes import Process
from dynopt_ray.errors import ClusterError
from tests.processes import hears_ctrl_c

ROOT = Path(__file__).parents[2]

_TOOLS = """
import json, os, sys, time
from pathlib import Path
import ray
from dynopt_ray.cluster import session
from dynopt_ray.cluster.sessions.processes import ray_processes
from dynopt_ray.errors import ClusterError

def tell(**facts):
    print(json.dumps(facts), flush=True)

def processes():
    return [[p.pid, p.start] for p in ray_processes()]

def listening():
    # Addresses on which this process and Ray's processes accept connections.
    inodes = set()
    for pid in [os.getpid(), *(p.pid for p in ray_processes())]:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
            except OSError:
                pass
    rows = Path("/proc/net/tcp").read_text().splitlines() + (
        Path("/proc/net/tcp6").read_text().splitlines())
    fields = [row.split() for row in rows]
    return sorted({f[1].split(":")[0] for f in fields if f[3] == "0A" and f[9] in inodes})
"""

_WHOLE = """
with session() as outer:
    import my_module
    with session("auto") as inner:
        pass
    @ray.remote
    def work():
        return my_module.VALUE, torch_free()
    def torch_free():
        return "torch" in sys.modules
    value, _ = ray.get(work.remote())
    tell(started=outer.started, nested=inner.started, same=inner.address == outer.address,
         value=value, address=outer.address, listening=listening(), processes=processes(),
         usage=os.environ["RAY_USAGE_STATS_ENABLED"])
    sys.stdin.readline()
tell(left=processes(), running=ray.is_initialized())
"""

_JOIN = """
start = time.monotonic()
try:
    with session(sys.argv[1], task_gpus=float(sys.argv[2])) as joined:
        tell(started=joined.started, value=ray.get(ray.put(5)))
except ClusterError as error:
    tell(error=str(error))
tell(seconds=time.monotonic() - start)
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **more}


def script(code: str, *arguments: str, home: Path, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _TOOLS + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=environment(home, **more),
        preexec_fn=hears_ctrl_c,
    )


def facts(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1])
    told: dict[str, Any] = json.loads(line)
    return told


def joined(address: str, gpus: float, home: Path, **more: str) -> dict[str, Any]:
    out, err = script(_JOIN, address, str(gpus), home=home, **more).communicate(timeout=60)
    told: dict[str, Any] = {}
    for line in out.splitlines():
        told |= json.loads(line)
    assert told, err
    return told


def alive(processes: list[list[int]]) -> list[Process]:
    return [p for p in (Process(*numbers) for numbers in processes) if p.is_alive()]


@pytest.mark.ray
def test_a_session_is_private_can_be_joined_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text("VALUE = 42")
    running = script(_WHOLE, home=tmp_path)
    told = facts(running)
    assert told["started"]
    assert not told["nested"]
    assert told["same"]
    assert told["value"] == 42
    assert told["usage"] == "0"
    # 127.0.0.1, as an IPv4 and as an IPv6 address.
    assert set(told["listening"]) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(told["processes"]) > 3
    address = told["address"]

    assert joined(address, 0, tmp_path)["value"] == 5
    assert not joined("auto", 0, tmp_path).get("started", False)
    refused = joined(address, 2, tmp_path)
    assert "one task needs 1 CPUs and 2 GPUs" in refused["error"]
    assert refused["seconds"] < 10
    stranger = joined(address, 0, tmp_path, RAY_AUTH_TOKEN="0" * 64)
    assert "another token" in stranger["error"]
    assert stranger["seconds"] < 10
    # The sessions that joined have left, and the cluster still runs.
    assert len(alive(told["processes"])) > 3

    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()
    assert facts(running) == {"left": [], "running": False}
    assert not alive(told["processes"])
    running.communicate(timeout=20)
    assert running.returncode == 0


_INTERRUPTED = """
try:
    with session(num_cpus=1):
        tell(processes=processes())
        time.sleep(600)
finally:
    tell(left=processes())
"""


@pytest.mark.ray
def test_ctrl_c_ends_ray(tmp_path: Path) -> None:
    running = script(_INTERRUPTED, home=tmp_path)
    told = facts(running)
    assert len(told["processes"]) > 3
    running.send_signal(signal.SIGINT)
    assert facts(running) == {"left": []}
    assert not alive(told["processes"])
    _, stderr = running.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr


_INTERRUPTED_EARLY = """
import threading, signal
def strike():
    while not ray_processes():
        time.sleep(0.01)
    tell(processes=processes())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=strike).start()
try:
    with session(num_cpus=1):
        time.sleep(600)
finally:
    tell(left=processes())
"""


@pytest.mark.ray
def test_ctrl_c_during_the_start_of_ray_ends_its_processes(tmp_path: Path) -> None:
    running = script(_INTERRUPTED_EARLY, home=tmp_path)
    told = facts(running)
    assert facts(running) == {"left": []}
    assert not alive(told["processes"])
    running.communicate(timeout=20)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts or joins Ray fails: what is refused at once does not get there."""

    def init(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was asked for")

    monkeypatch.setattr(ray, "init", init)


@pytest.mark.usefixtures("without_ray")
def test_more_gpus_than_there_are_fail_at_once() -> None:
    with (
        pytest.raises(ClusterError, match="one task needs 1 CPUs and 99 GPUs"),
        session(task_gpus=99),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "no cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "no cluster answers at ray://127.0.0.1:1"),
        ("nonsense", "'nonsense' is not the address of a cluster; write 'host:6379'"),
    ],
)
@pytest.mark.usefixtures("without_ray")
def test_an_address_without_a_cluster_is_refused_at_once(address: str, reason: str) -> None:
    with pytest.raises(ClusterError, match=reason), session(address):
        pass
