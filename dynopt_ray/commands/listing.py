"""`dynopt runs`, `specs`, `plugins` and `report`: what there is, and what was found."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynopt_ray.commands.saying import Say, printable
from dynopt_ray.errors import DynoptError
from dynopt_ray.plugins import FAMILIES, Plugin
from dynopt_ray.plugins import plugins as members
from dynopt_ray.runs import (
    RunDirectory,
    load_spec,
    packaged,
    rebuild_tables,
    status_of,
    write_comparison,
    write_report,
)


def show_runs(directory: Path, *, say: Say) -> None:
    """Show the run directories in a directory, the oldest first."""
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
        say(f"no runs in {directory}")
        return
    Console().print(table)


def show_specs() -> None:
    """Show the specs that come with the package."""
    table = Table("name", "kind", "file", box=None, pad_edge=False)
    for name, path in packaged().items():
        table.add_row(name, load_spec(name).kind, escape(str(path)))
    Console().print(table)


def show_plugins(*, say: Say, is_interrupted: Callable[[], bool]) -> None:
    """Show everything that can be used by name, and why some plugins cannot be loaded or used.

    Args:
        say: prints a line.
        is_interrupted: whether the user has asked this process to end.
    """
    table = Table("family", "name", "source", box=None, pad_edge=False)
    table.add_column("where", overflow="fold")
    remarks = []
    for family in FAMILIES:
        found = sorted(members(family), key=lambda plugin: plugin.name)
        if not found:
            table.add_row(family, "none", style="dim")
        for plugin in (_checked(plugin, is_interrupted) for plugin in found):
            # As `Text`, because names that others chose may look like rich's markup.
            cells = map(Text, map(printable, (plugin.name, plugin.source, plugin.target)))
            table.add_row(family, *cells, style="red" if plugin.error else None)
            remarks += _remarks(plugin)
    Console().print(table)
    for remark in remarks:
        say(remark)


def _checked(plugin: Plugin, is_interrupted: Callable[[], bool]) -> Plugin:
    try:
        return plugin.check()
    except KeyboardInterrupt:
        if is_interrupted():
            raise
        # No signal has arrived, so the plugin itself raised it.
        return replace(plugin, error="it raises KeyboardInterrupt when it is imported")


def _remarks(plugin: Plugin) -> list[str]:
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


def make_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of one run, or the comparison of several, and return its file.

    Raises:
        RunError: one of them is no run, or is damaged.
        OSError: the file cannot be written.
    """
    directories = [RunDirectory.open(path) for path in runs]
    for directory in directories:
        rebuild_tables(directory)
    if len(directories) == 1:
        return write_report(directories[0])
    return write_comparison(directories, out)
