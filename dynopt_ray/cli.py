"""The command line: `dynopt run`, `resume`, `report`, `runs`, `specs` and `plugins`.

Heavy imports happen inside the commands, so that `dynopt --help` is fast.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

import dynopt_ray
from dynopt_ray.errors import DynoptError, described
from dynopt_ray.interrupts import Interrupts

if TYPE_CHECKING:
    from dynopt_ray.runs import PreparedRun, Progress, Run

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

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
    spec: Annotated[
        str, typer.Argument(help="The spec of the run: a YAML file or the name of a packaged spec.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Override a value of the spec. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. Default: runs/<spec>-<time>.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster to join. Default: start one on this machine."
        ),
    ] = None,
) -> None:
    """Carry out the run that a spec describes, and write its run directory."""
    try:
        _run(spec, set_ or [], out, address)
    except KeyboardInterrupt:
        raise _interrupted() from None


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Override a value of the spec. Repeatable."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster to join. Default: start one on this machine."
        ),
    ] = None,
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
    from rich.table import Table

    from dynopt_ray.runs import RunDirectory, status_of

    table = Table("run", "kind", "status", "started", "duration", box=None, pad_edge=False)
    found = sorted(directory.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    for path in found:
        try:
            about = RunDirectory.open(path.parent).manifest
        except DynoptError as error:
            table.add_row(escape(str(path.parent)), "", escape(f"damaged: {error}"), "", "")
            continue
        duration = f"{about['duration_s']:.0f} s" if "duration_s" in about else ""
        status = status_of(RunDirectory.open(path.parent))
        table.add_row(
            *map(escape, (str(path.parent), about["kind"], status, about["started"][:19], duration))
        )
    if not found:
        _say(Console(), f"no runs in {directory}")
        return
    Console().print(table)


@app.command()
def specs() -> None:
    """List the specs that come with the package; `dynopt run NAME` carries one out."""
    from rich.table import Table

    from dynopt_ray.runs import load_spec, packaged

    table = Table("name", "kind", "file", box=None, pad_edge=False)
    for name, path in packaged().items():
        table.add_row(name, load_spec(name).kind, escape(str(path)))
    Console().print(table)


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
    from dynopt_ray.runs import RunDirectory, rebuild_tables, write_comparison, write_report

    try:
        directories = [RunDirectory.open(path) for path in runs]
        for directory in directories:
            rebuild_tables(directory)
        if len(directories) == 1:
            written = write_report(directories[0])
        else:
            written = write_comparison(directories, out)
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    except OSError as error:
        raise _refusal(f"cannot write {error.filename}: {error.strerror}", FAILED) from None
    _say(Console(), f"report: {written}")


@app.command()
def plugins() -> None:
    """List everything that can be used by name, and report plugins that cannot be loaded."""
    from rich.table import Table

    from dynopt_ray.plugins import FAMILIES
    from dynopt_ray.plugins import plugins as members

    _find_modules_here()
    table = Table("family", "name", "source", box=None, pad_edge=False)
    table.add_column("where", overflow="fold")
    broken = []
    for family in FAMILIES:
        found = sorted(members(family), key=lambda plugin: plugin.name)
        if not found:
            table.add_row(family, "none", style="dim")
        for plugin in found:
            checked = plugin.check()
            style = "red" if checked.error else None
            table.add_row(family, plugin.name, plugin.source, plugin.target, style=style)
            if checked.error:
                broken.append(checked)
    console = Console()
    console.print(table)
    for plugin in broken:
        _say(console, f"broken: {plugin.family} {plugin.name!r}: {plugin.error}")


def _run(spec: str, overrides: list[str], out: Path | None, address: str | None) -> None:
    from dynopt_ray.runs import (
        Run,
        RunDirectory,
        check_address,
        default_path,
        load_spec,
        prepare,
        spec_text,
    )

    _find_modules_here()
    try:
        loaded = load_spec(spec, overrides)
        if address is not None:
            check_address(loaded.kind, address)
        action = prepare(loaded)
        name = Path(spec).stem
        directory = RunDirectory.create(
            out or default_path(name),
            spec_text=spec_text(loaded),
            about={"spec": name, "kind": loaded.kind, "seed": loaded.seed},
        )
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    _carried_out(action, Run(directory, _progress(Console()), address, loaded.num_threads))


def _resume(path: Path, overrides: list[str], address: str | None) -> None:
    from dynopt_ray.runs import Run, RunDirectory, check_address, load_spec, prepare, spec_text

    _find_modules_here()
    try:
        directory = RunDirectory.open(path)
        if directory.manifest["status"] == "finished" and not overrides:
            _say(Console(), f"{path} is finished; its report: {path / 'report.html'}")
            return
        loaded = load_spec(str(path / "spec.yaml"), overrides)
        if address is not None:
            check_address(loaded.kind, address)
        action = prepare(loaded)
        directory.lock()
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    directory.reopen()
    directory.write_text("spec.yaml", spec_text(loaded))
    _carried_out(action, Run(directory, _progress(Console()), address, loaded.num_threads))


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


def _say(console: Console, text: str) -> None:
    # No markup: messages quote what users wrote, which may look like rich's markup.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
