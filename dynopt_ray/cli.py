"""The command line: runs, their reports, jobs on clusters, and what can be used by name.

Heavy imports happen inside the commands, so that `dynopt --help` is fast.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import dynopt_ray
from dynopt_ray.errors import DynoptError, described
from dynopt_ray.interrupts import Interrupts

if TYPE_CHECKING:
    from dynopt_ray.runs import PreparedRun, Progress, Run, Spec

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

SpecName = Annotated[
    str, typer.Argument(help="The spec of the run: a YAML file or the name of a packaged spec.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a value of the spec. Repeatable."),
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Address of the Ray cluster to join. Default: start one on this machine."),
]
Dashboard = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        help="Address of the cluster's dashboard, such as http://host:8265.",
    ),
]

app = typer.Typer(
    name="dynopt",
    help="Keep PyTorch networks the right size: prune, search, train policies, adapt, stream.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_errors = Console(stderr=True)
_interrupts = Interrupts()


def main() -> None:
    """Run the command `dynopt`."""
    with _interrupts.heard():
        app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(dynopt_ray.__version__)
        raise typer.Exit


@app.command()
def run(
    spec: SpecName,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. Default: runs/<spec>-<time>.")
    ] = None,
    address: Cluster = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would run and how long; write nothing."),
    ] = False,
) -> None:
    """Carry out the run that a spec describes, and write its run directory."""
    try:
        if dry_run:
            _show_dry_run(spec, set_ or [], out, address)
        else:
            _run(spec, set_ or [], out, address)
    except KeyboardInterrupt:
        raise _interrupted() from None


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    set_: Overrides = None,
    address: Cluster = None,
) -> None:
    """Continue a run that was interrupted or has died; nothing that it found is computed again."""
    try:
        _resume(run, set_ or [], address)
    except KeyboardInterrupt:
        raise _interrupted() from None


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(help="A directory of run directories.")] = Path(
        "runs"
    ),
) -> None:
    """List runs: their kind, how they ended or how far they are, and when they began."""
    from dynopt_ray.commands import show_runs

    show_runs(directory, say=_told)


@app.command()
def specs() -> None:
    """List the specs that come with the package; `dynopt run NAME` carries one out."""
    from dynopt_ray.commands import show_specs

    show_specs()


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One or more run directories.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write a comparison of runs to.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Rebuild the report of a run, or compare several runs on one page."""
    from dynopt_ray.commands import make_report

    try:
        written = make_report(runs, out)
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    except OSError as error:
        raise _refusal(f"cannot write {error.filename}: {error.strerror}", FAILED) from None
    _say(Console(), f"report: {written}")


@app.command()
def plugins() -> None:
    """List everything that can be used by name, and report plugins that cannot be loaded."""
    from dynopt_ray.commands import show_plugins

    _find_modules_here()
    show_plugins(say=_told, is_interrupted=lambda: _interrupts.exit_code is not None)


@app.command()
def submit(
    spec: SpecName,
    address: Dashboard,
    set_: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(help="The run directory on the cluster. Default: below $HOME/runs there."),
    ] = None,
    ship: Annotated[
        list[Path] | None,
        typer.Option(help="A package or wheel to send along, such as plugins. Repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out instead.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait for the end of the run.")
    ] = False,
) -> None:
    """Submit a run to a cluster as a job, with the working directory, and show its output."""
    from dynopt_ray.commands import submit_run

    _find_modules_here()
    with _refused():
        succeeded = submit_run(
            spec,
            set_ or [],
            address=address,
            out=out,
            ship=ship or [],
            resume=resume,
            wait=not no_wait,
            say=_told,
        )
    if not succeeded:
        raise typer.Exit(FAILED)


@app.command()
def status(
    address: Dashboard,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One job, with the end of its output.")
    ] = None,
) -> None:
    """List the jobs of a cluster, or show one of them."""
    from dynopt_ray.commands import show_jobs

    with _refused():
        show_jobs(address, job, say=_told)


@app.command()
def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The name of the job.")],
    address: Dashboard,
) -> None:
    """Stop a job of a cluster; its run keeps what it found, and can be resumed."""
    from dynopt_ray.commands import stop_job

    with _refused():
        stop_job(address, job, say=_told)


@app.command()
def doctor(
    address: Cluster = None,
    storage: Annotated[
        str, typer.Option(help="The directory or URI to which runs will be written.")
    ] = ".",
) -> None:
    """Examine versions, devices, Ray, storage, data and plugins; fail if something is missing."""
    from dynopt_ray.commands import examine

    _find_modules_here()
    missing = 0
    with _refused():
        for finding in examine(address, storage):
            missing += finding.state == "missing"
            _told(f"{finding.state:8}{finding.what}: {finding.text}")
    if missing:
        raise _refusal(f"what runs need is missing: {missing}", FAILED)


def _show_dry_run(spec: str, overrides: list[str], out: Path | None, address: str | None) -> None:
    from dynopt_ray.commands import show_dry_run

    _find_modules_here()
    with _refused():
        show_dry_run(spec, overrides, out=out, address=address, say=_told)


@contextmanager
def _refused() -> Iterator[None]:
    """Turn errors within a block into a message and an exit code."""
    try:
        with _bad_input():
            yield
    except KeyboardInterrupt:
        raise _interrupted() from None


def _run(spec: str, overrides: list[str], out: Path | None, address: str | None) -> None:
    from dynopt_ray.runs import Run, RunDirectory, cluster_for, default_path, spec_text

    _find_modules_here()
    progress = _progress(Console())
    with ExitStack() as stack:
        with _bad_input():
            loaded, action = _prepared(spec, overrides, address)
            name = Path(spec).stem
            directory = RunDirectory.create(
                out or default_path(name),
                spec_text=spec_text(loaded),
                about={"spec": name, "kind": loaded.kind, "seed": loaded.seed},
            )
            with _undone(directory.discard):
                address = stack.enter_context(
                    cluster_for(loaded, address=address, storage=directory.path, progress=progress)
                )
                _interrupts.check()
        _carried_out(action, Run.of(loaded, directory, progress, address))


def _resume(path: Path, overrides: list[str], address: str | None) -> None:
    from dynopt_ray.runs import Run, RunDirectory, cluster_for, spec_text

    _find_modules_here()
    progress = _progress(Console())
    with ExitStack() as stack:
        with _bad_input():
            directory = RunDirectory.open(path)
            if directory.manifest["status"] == "finished" and not overrides:
                _told(f"{path} is finished; its report: {path / 'report.html'}")
                return
            loaded, action = _prepared(str(path / "spec.yaml"), overrides, address)
            directory.lock()
            with _undone(directory.close):
                address = stack.enter_context(
                    cluster_for(loaded, address=address, storage=path, progress=progress)
                )
                _interrupts.check()
                directory.reopen()
                directory.write_text("spec.yaml", spec_text(loaded))
        _carried_out(action, Run.of(loaded, directory, progress, address))


def _prepared(spec: str, overrides: list[str], address: str | None) -> tuple["Spec", "PreparedRun"]:
    from dynopt_ray.runs import check_address, check_can_start, load_spec, prepare

    loaded = load_spec(spec, overrides)
    if address is not None:
        check_address(loaded.kind, address)
    action = prepare(loaded)
    if address is None:
        check_can_start(loaded)
    return loaded, action


@contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Undo what was done before a block that fails."""
    try:
        yield
    except BaseException:
        undo()
        raise


def _carried_out(action: "PreparedRun", run: "Run") -> None:
    from dynopt_ray.runs import carry_out

    directory = run.directory
    log = directory.path / "log.txt"
    try:
        carry_out(action, run)
    except KeyboardInterrupt:
        _say(
            _errors,
            f"{directory.path} holds the results so far; continue with `dynopt resume "
            f"{directory.path}`",
        )
        raise
    except DynoptError as error:
        raise _refusal(f"{described(error)} (see {log})", FAILED) from None
    except Exception as error:
        # An unexpected error: the log holds the traceback, and the message says where the log is.
        raise _refusal(f"{described(error)} (traceback in {log})", FAILED) from None
    _say(Console(), f"report: {directory.path / 'report.html'}")


@contextmanager
def _bad_input() -> Iterator[None]:
    """Turn every error that comes before a run begins into one message and exit code 2."""
    try:
        yield
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    except Exception as error:
        # A user's own code, or a library that the spec has given impossible values.
        from dynopt_ray.commands import raised_in

        raise _refusal(f"{described(error)} ({raised_in(error)})", BAD_INPUT) from None


def _find_modules_here() -> None:
    """Let `module:attribute` name modules in the working directory, as with `python -m`.

    The directory comes last on the path, so that its modules do not hide installed packages.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _progress(console: Console) -> "Progress":
    from dynopt_ray.runs import Lines, Live

    return Live(console) if console.is_terminal else Lines(console)


def _refusal(message: str, code: int) -> typer.Exit:
    """Print an error message, and return the exit to raise."""
    if _interrupts.exit_code is not None:
        return _interrupted()
    _say(_errors, f"error: {message}")
    return typer.Exit(code)


def _interrupted() -> typer.Exit:
    _errors.print("interrupted")
    return typer.Exit(_interrupts.exit_code or INTERRUPTED)


def _told(text: str) -> None:
    _say(Console(), text)


def _say(console: Console, text: str) -> None:
    # No markup: messages quote what users wrote, which may look like rich's markup.
    from dynopt_ray.commands import printable

    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
