"""A head of a cluster in processes of its own, as `ray start` makes it, on loopback only."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: host:port of the cluster.
        client: the address for Ray's client.
        dashboard: the address of the dashboard, for jobs.
        environment: the environment of a process of somebody who has the token.
    """

    address: str
    client: str
    dashboard: str
    environment: dict[str, str]


@contextmanager
def running_head(home: Path, *options: str, token: bool = True) -> Iterator[Head]:
    """Run a head in a home directory of its own until the end of the block."""
    gcs, client, dashboard, agent = _free_ports(4)
    bin_directory = str(Path(sys.executable).parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {
        **kept,
        "HOME": str(home),
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "envs")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own switch for systems without clusters: all servers stay on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with ExitStack() as stack:
        # Sockets have short paths, and those of pytest are long.
        temporary = stack.enter_context(
            TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        )
        command = [
            f"{bin_directory}/ray", "start", "--head", "--block", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", f"--port={gcs}",
            f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            "--num-cpus=2", f"--object-store-memory={80 * 2**20}", f"--temp-dir={temporary}",
            *options,
        ]  # fmt: skip
        log = stack.enter_context((home / "head.log").open("w"))
        process = subprocess.Popen(
            command, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT
        )
        stack.callback(_end, process)
        _wait_for(process, gcs, home)
        yield Head(
            f"127.0.0.1:{gcs}",
            f"ray://127.0.0.1:{client}",
            f"http://127.0.0.1:{dashboard}",
            environment,
        )


def _wait_for(process: "subprocess.Popen[bytes]", port: int, home: Path) -> None:
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in (home / "head.log").read_text():
        assert process.poll() is None, (home / "head.log").read_text()
        assert time.monotonic() < deadline, f"no head at {port}"
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
