"""`dynopt submit`, `dynopt status` and `dynopt stop`: runs as jobs of a cluster."""

import secrets
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynopt_ray.cluster import ClusterJob, JobClient
from dynopt_ray.commands.saying import Say
from dynopt_ray.errors import SpecError
from dynopt_ray.runs import load_spec, packaged

# The job's working directory is deleted after it, so results go to the home of the node.
_RUNS = "$HOME/runs"
_LAST_LINES = 20


def submit_run(
    spec: str,
    overrides: Sequence[str],
    *,
    address: str,
    out: str | None,
    ship: Sequence[Path],
    resume: bool,
    wait: bool,
    say: Say,
) -> bool:
    """Submit a run to a cluster, and show what it prints.

    Args:
        spec: the name of a packaged spec, or a YAML file in the working directory.
        overrides: values of the spec to override.
        address: the address of the cluster's dashboard.
        out: the run directory on the cluster. None is runs/ in the home directory there.
        ship: packages that are sent along with the working directory.
        resume: whether to continue the run in `out`.
        wait: whether to wait for the end.
        say: prints a line.

    Returns:
        False if the run is known to have failed.

    Raises:
        SpecError: the spec is wrong, its file is not in the working directory, or what should be
            sent along does not exist.
        ClusterError: the cluster cannot be reached or refuses the job.
    """
    file = _shipped_spec(spec)
    load_spec(spec, list(overrides))
    for path in ship:
        if not path.exists():
            raise SpecError(f"--ship {path}: there is no such file or directory")
    if resume and out is None:
        raise SpecError("--resume: give the directory of the run to continue with --out")
    client = JobClient(address)
    name = f"{Path(spec).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    # A shell on the cluster sets HOME. A run in a job finds its cluster by RAY_ADDRESS.
    directory = shlex.quote(out) if out else f'"{_RUNS}/{name}"'
    sets = [part for override in overrides for part in ("--set", override)]
    command = (
        f"dynopt resume {directory} {shlex.join(sets)}".rstrip()
        if resume
        else f"dynopt run {shlex.join([file, *sets])} --out {directory}"
    )
    client.submit(command, name=name, directory=Path.cwd(), ship=ship)
    say(f"job: {name}")
    say(f"run directory on the cluster: {out or f'{_RUNS}/{name}'}")
    if not wait:
        say(f"watch it with `dynopt status {name} --address {address}`")
        return True
    return _followed(client, name, address, say)


def _shipped_spec(spec: str) -> str:
    """Return how the job names the spec: by its name, or by its path in what is sent along."""
    path = Path(spec)
    if spec in packaged() and not path.exists():
        return spec
    if not path.exists():
        return spec  # loading it says what is wrong
    if not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise SpecError(
            f"{spec} is not in the working directory, which is what is sent to the cluster; copy "
            "it here"
        )
    return path.resolve().relative_to(Path.cwd().resolve()).as_posix()


def _followed(client: JobClient, name: str, address: str, say: Say) -> bool:
    try:
        for lines in client.follow(name):
            print(lines, end="", flush=True)
    except KeyboardInterrupt:
        say(f"\nthe job continues; stop it with `dynopt stop {name} --address {address}`")
        raise
    job = client.job(name)
    say(_ending(job))
    return job.has_succeeded


def _ending(job: ClusterJob) -> str:
    message = f": {job.message}" if job.message and not job.has_succeeded else ""
    return f"{job.name}: {job.status.lower()}{message}"


def show_jobs(address: str, name: str | None, *, say: Say) -> None:
    """Show the jobs of a cluster, or one job with the last lines that it has printed.

    Raises:
        ClusterError: the cluster cannot be reached, or has no such job.
    """
    client = JobClient(address)
    if name is not None:
        job = client.job(name)
        say(_ending(job))
        say(job.command)
        say("\n".join(client.printed(name).splitlines()[-_LAST_LINES:]))
        return
    jobs = client.jobs()
    if not jobs:
        say(f"no jobs at {address}")
        return
    table = Table("job", "status", "started", "duration", box=None, pad_edge=False)
    table.add_column("command", overflow="fold")
    for job in jobs:
        started = "" if job.started is None else job.started.isoformat(timespec="seconds")[:19]
        duration = "" if job.duration_s is None else f"{job.duration_s:.0f} s"
        table.add_row(*map(escape, (job.name, job.status.lower(), started, duration, job.command)))
    Console().print(table)


def stop_job(address: str, name: str, *, say: Say) -> None:
    """Ask a job to end, and wait until it has written its report.

    Raises:
        ClusterError: the cluster cannot be reached, or has no such job.
    """
    client = JobClient(address)
    before = client.job(name)
    if before.has_ended:
        say(f"{name} has ended already: {before.status.lower()}")
        return
    say(_ending(client.stop(name)))
