"""An S3 server on this machine, in an environment of its own that `make test` installs."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PYTHON = Path(__file__).parents[2] / ".venv-peers-s3" / "bin" / "python"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """A server that keeps its objects in memory.

    Attributes:
        port: its port on the loopback interface.
    """

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [_PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, "the S3 server does not start"
            assert self._process.poll() is None, "the S3 server has ended"
            time.sleep(0.1)

    def bucket(self, name: str) -> str:
        """Make a bucket, and return the URI of a directory in it, without its query."""
        where = f"http://127.0.0.1:{self.port}/{name}"
        urllib.request.urlopen(urllib.request.Request(where, method="PUT"), timeout=10).close()
        return f"s3://{name}/runs/search"

    def uri(self, place: str) -> str:
        """Return the URI of a place, with what pyarrow needs to find this server."""
        return f"{place}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    def pause(self) -> None:
        """Let the server not answer any more."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server; skip the test if its packages are not installed."""
    if not _PYTHON.exists():
        pytest.skip("`make test` installs the S3 server")
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
