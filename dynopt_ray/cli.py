"""The command line: `dynopt run`, `dynopt report`, `dynopt plugins`.

Heavy imports happen inside the commands, so that `dynopt --help` is fast.
"""

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import dynopt_ray
from dynopt_ray.errors import DynoptError, described
from dynopt_ray.interrupts import Interrupts

if TYPE_CHECKING:
    from dynopt_ray.plugins import Plugin
    from dynopt_ray.runs import Progress

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
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One or more run directories.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write a comparison of runs to.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Rebuild the report of a run, or compare several runs on one page."""
    from dynopt_ray.runs import RunDirectory, write_comparison, write_report

    try:
        directories = [RunDirectory.open(path) for path in runs]
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
        carry_out,
        check_address,
        check_can_start,
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
        if address is None:
            check_can_start(loaded)
        name = Path(spec).stem
        directory = RunDirectory.create(
            out or default_path(name),
            spec_text=spec_text(loaded),
            about={"spec": name, "kind": loaded.kind, "seed": loaded.seed},
        )
    except DynoptError as error:
        raise _refusal(str(error), BAD_INPUT) from None
    except Exception as error:
        # A user's own code, or a library that the spec has given impossible values.
        raise _refusal(f"{described(error)} ({_place(error)})", BAD_INPUT) from None
    console = Console()
    log = directory.path / "log.txt"
    try:
        carry_out(action, Run(directory, _progress(console), address, loaded.num_threads))
    except KeyboardInterrupt:
        _say(_errors, f"{directory.path} holds the results so far")
        raise
    except DynoptError as error:
        raise _refusal(f"{described(error)} (see {log})", FAILED) from None
    except Exception as error:
        # An unexpected error: the log holds the traceback, and the message says where the log is.
        raise _refusal(f"{described(error)} (traceback in {log})", FAILED) from None
    _say(console, f"report: {directory.path / 'report.html'}")


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
