"""Submit, follow and stop jobs through the dashboard of a cluster."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from dynopt_ray.cluster.sessions import NOT_SHIPPED, check_accepts, use_token
from dynopt_ray.errors import ClusterError

_T = TypeVar("_T")

_POLL_S = 0.5
# A cluster that has just started takes some seconds until it accepts jobs.
_AGENT_S, _NO_AGENT = 30.0, "No available agent"
_TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
# Time that a run gets to write its report after it was asked to end.
_STOP_S = 60


@dataclass(frozen=True)
class ClusterJob:
    """A job of a cluster.

    Attributes:
        name: its id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        command: the command that it runs.
        message: what the cluster says about its status.
        started: when it started, or None.
        duration_s: how long it has run, in seconds, or None.
    """

    name: str
    status: str
    command: str
    message: str
    started: datetime | None
    duration_s: float | None

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return JobStatus(self.status).is_terminal()

    @property
    def has_succeeded(self) -> bool:
        """Whether its command ended without an error."""
        return self.status == JobStatus.SUCCEEDED


class JobClient:
    """The jobs of one cluster.

    Args:
        address: the address of the cluster's dashboard, such as http://host:8265.

    Raises:
        ClusterError: nothing answers there, it is no dashboard, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClusterError(
                f"{address!r} is not the address of a dashboard; write http://host:8265"
            )
        self._address = address
        port = parts.port or (443 if parts.scheme == "https" else 80)
        check_accepts(parts.hostname, port)
        use_token(starting=False)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = self._asked(lambda: JobSubmissionClient(address))
        # The version of a dashboard is shown to everybody, its jobs are not.
        self._asked(self._client.list_jobs)

    def submit(self, command: str, *, name: str, directory: Path, ship: Sequence[Path]) -> None:
        """Submit a command, which runs in a copy of a directory.

        Args:
            command: the command, for a shell.
            name: the id of the job.
            directory: the directory that is sent along, except for what belongs to git, virtual
                environments, and runs/ and data/.
            ship: packages (directories or wheels) that are sent along and can be imported.

        Raises:
            ClusterError: the cluster refuses the job, or the directory is too large.
        """
        environment: dict[str, Any] = {
            "working_dir": str(directory),
            "excludes": list(NOT_SHIPPED),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), "PYTHONUNBUFFERED": "1"},
        }
        if ship:
            environment["py_modules"] = [str(path) for path in ship]
        deadline = time.monotonic() + _AGENT_S
        while True:
            try:
                self._asked(
                    lambda: self._client.submit_job(
                        entrypoint=command, submission_id=name, runtime_env=environment
                    )
                )
            except ClusterError as error:
                if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def follow(self, name: str) -> Iterator[str]:
        """Yield what a job prints until it ends.

        Raises:
            ClusterError: there is no such job, or the connection broke.
        """
        while self.job(name).status == JobStatus.PENDING:
            time.sleep(_POLL_S)
        loop = asyncio.new_event_loop()
        lines = self._client.tail_job_logs(name)
        try:
            while True:
                yield self._asked(lambda: loop.run_until_complete(anext(lines)))
        except StopAsyncIteration:
            pass
        finally:
            loop.run_until_complete(lines.aclose())  # type: ignore[attr-defined]
            loop.close()
        while not self.job(name).has_ended:
            time.sleep(_POLL_S)

    def printed(self, name: str) -> str:
        """Return what a job has printed so far.

        Raises:
            ClusterError: there is no such job.
        """
        return self._asked(lambda: self._client.get_job_logs(name))

    def jobs(self) -> list[ClusterJob]:
        """Return all submitted jobs, the latest last."""
        listed = [job for job in self._asked(self._client.list_jobs) if job.submission_id]
        return [_job(job) for job in sorted(listed, key=lambda job: job.start_time or 0)]

    def job(self, name: str) -> ClusterJob:
        """Return a job.

        Raises:
            ClusterError: there is no such job.
        """
        return _job(self._asked(lambda: self._client.get_job_info(name)))

    def stop(self, name: str) -> ClusterJob:
        """Ask a job to end, wait until it has, and return it.

        Raises:
            ClusterError: there is no such job.
        """
        self._asked(lambda: self._client.stop_job(name))
        deadline = time.monotonic() + _STOP_S + 10
        while not (job := self.job(name)).has_ended and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return job

    def _asked(self, question: Callable[[], _T]) -> _T:
        """Return the cluster's answer; turn its refusals into errors that say what to do."""
        try:
            return question()
        except AuthenticationError:
            is_refused, text = True, ""
        except aiohttp.WSServerHandshakeError as error:
            is_refused, text = error.status in (401, 403), str(error)
        except (RuntimeError, ValueError, OSError, aiohttp.ClientError) as error:
            is_refused, text = False, str(error)
        if is_refused:
            raise ClusterError(
                f"the cluster at {self._address} refuses this token, or asks for one; give the "
                "cluster's own in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            )
        raise ClusterError(f"the cluster at {self._address} refuses: {text.strip()}")


def _job(details: Any) -> ClusterJob:
    begun, ended = details.start_time, details.end_time
    return ClusterJob(
        name=details.submission_id,
        status=str(details.status),
        command=details.entrypoint,
        message=details.message or "",
        started=datetime.fromtimestamp(begun / 1_000, UTC) if begun else None,
        duration_s=(ended / 1_000 if ended else time.time()) - begun / 1_000 if begun else None,
    )
