"""The command line: `dynopt run`, `resume`, `report`, `runs`, `specs` and `plugins`.

Heavy imports happen inside the commands, so that `dynopt --help` is fast.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

import dynopt_ray
from dynopt_ray.errors import DynoptError, described
from dynopt_ray.interrupts import Interrupts

if TYPE_CHECKING:
    from dynopt_ray.plugins import Plugin
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
    from rich.text import Text

    from dynopt_ray.plugins import FAMILIES
    from dynopt_ray.plugins import plugins as members

    _find_modules_here()
    table = Table("family", "name", "source", box=None, pad_edge=False)
    table.add_column("where", overflow="fold")
    remarks = []
    for family in FAMILIES:
        found = sorted(members(family), key=lambda plugin: plugin.name)
        if not found:
            table.add_row(family, "none", style="dim")
        for plugin in map(_checked, found):
            # As `Text`, because names that others chose may look like rich's markup.
            cells = map(Text, map(_printable, (plugin.name, plugin.source, plugin.target)))
            table.add_row(family, *cells, style="red" if plugin.error else None)
            remarks += _remarks(plugin)
    console = Console()
    console.print(table)
    for remark in remarks:
        _say(console, remark)


def _checked(plugin: "Plugin") -> "Plugin":
    try:
        return plugin.check()
    except KeyboardInterrupt:
        if _interrupts.exit_code is not None:
            raise
        # No signal has arrived, so the plugin itself raised it.
        return replace(plugin, error="it raises KeyboardInterrupt when it is imported")


def _remarks(plugin: "Plugin") -> list[str]:
    """Return what a user should know about a plugin beyond where it is."""
    remarks = []
    if plugin.shadowed_by:
        remarks.append(
            f"not used: {plugin.family} {plugin.name!r} of {plugin.source}, because the plugin of "
            f"this name from {plugin.shadowed_by} comes first; write {plugin.target} instead"
        )
    if plugin.error:
        remarks.append(f"broken: {plugin.family} {plugin.name!r}: {plugin.error}")
    return remarks


def _run(spec: str, overrides: list[str], out: Path | None, address: str | None) -> None:
    from dynopt_ray.runs import (
        Run,
        RunDirectory,
        check_address,
        check_can_start,
        default_path,
        load_spec,
        prepare,
        spec_text,
    )

    _find_modules_here()
    with _bad_input():
        loaded = load_spec(spec, overrides)
        if address is not None:
            check_address(loaded.kind, address)
        action = prepare(loaded)
        if address is None:
            check_can_start(loaded)
        name = Path(spec).stem
        directory = RunDirectory.create(
            out or default_path(name),
            spec_text=spec_text(loaded),
            about={"spec": name, "kind": loaded.kind, "seed": loaded.seed},
        )
    _carried_out(action, Run(directory, _progress(Console()), address, loaded.num_threads))


def _resume(path: Path, overrides: list[str], address: str | None) -> None:
    from dynopt_ray.runs import (
        Run,
        RunDirectory,
        check_address,
        check_can_start,
        load_spec,
        prepare,
        spec_text,
    )

    _find_modules_here()
    with _bad_input():
        directory = RunDirectory.open(path)
        if directory.manifest["status"] == "finished" and not overrides:
            _say(Console(), f"{path} is finished; its report: {path / 'report.html'}")
            return
        loaded = load_spec(str(path / "spec.yaml"), overrides)
        if address is not None:
            check_address(loaded.kind, address)
        action = prepare(loaded)
        if address is None:
            check_can_start(loaded)
        directory.lock()
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


@contextmanager
def _bad_input() -> Iterator[None]:
    """Turn every error that comes before a run begins into one message and exit code 2."""
    try:
        yield
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    except Exception as error:
        # A user's own code, or a library that the spec has given impossible values.
        raise _refusal(f"{described(error)} ({_place(error)})", BAD_INPUT) from None


def _place(error: BaseException) -> str:
    """Return where an error was raised, for a message that stands in for a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"raised in {frames[-1].filename}, line {frames[-1].lineno}" if frames else "no traceback"
    )


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
    console.print(_printable(text), markup=False, highlight=False, soft_wrap=True)


def _printable(text: str) -> str:
    """Return a text without control characters, which could rewrite what a terminal shows."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
