"""The command line: `dynopt run`, `dynopt report`, `dynopt plugins`.

Heavy imports happen inside the commands, so that `dynopt --help` is fast.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import dynopt_ray
from dynopt_ray.errors import DynoptError, described
from dynopt_ray.interrupts import Interrupts

if TYPE_CHECKING:
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
        carry_out,
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
