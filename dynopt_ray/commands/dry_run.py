"""`dynopt run --dry-run`: show what a run would do."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynopt_ray.commands.saying import Say
from dynopt_ray.errors import RunError
from dynopt_ray.runs import Forecast, RunDirectory, default_path, forecast, load_spec, prepare


def show_dry_run(
    spec: str, overrides: Sequence[str], *, out: Path | None, address: str | None, say: Say
) -> None:
    """Check a run, and show its parts, its slots, and how long it would take. Write nothing.

    Raises:
        DynoptError: the run would be refused.
    """
    loaded = load_spec(spec, list(overrides))
    prepare(loaded)
    out = out or default_path(Path(spec).stem)
    if (out / "manifest.json").is_file() and RunDirectory.open(out).records:
        raise RunError(f"{out} has the results of a run; choose another --out")
    found = forecast(loaded, address=address, storage=out)
    table = Table("part", "work", "time", "note", box=None, pad_edge=False)
    for work, seconds in zip(found.works, found.seconds, strict=True):
        time = "not measured" if seconds is None else _duration(seconds)
        units = f"{work.units:,} {work.unit}" if work.units else work.unit
        table.add_row(*map(escape, (work.name, units, time, work.note)))
    Console().print(table)
    for line in _summary(found):
        say(line)


def _summary(found: Forecast) -> list[str]:
    lines = [f"storage: {found.storage}", *(f"node {node}" for node in found.nodes)]
    if found.need is not None:
        lines.append(f"a trial or actor reserves {found.need.described}; at once: {found.slots}")
    lines.append(
        f"about {_duration(found.total_s)}, from a few steps measured on this machine; without "
        "the time to start processes and to measure accuracy"
    )
    if found.gpu_hours:
        lines.append(f"about {found.gpu_hours:.2g} GPU hours, if a GPU is as fast as this machine")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
