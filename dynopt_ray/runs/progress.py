"""Show the progress of a run: bars on a terminal, lines elsewhere, and everything in the log."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

from dynopt_ray.runs.report import number

log = logging.getLogger("dynopt_ray.runs")

_QUIET_S = 5.0
_SILENT_S = 10.0


class Stage(Protocol):
    """A stage of a run that is under way."""

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Add to the amount of work that is done; `note` describes the present state."""

    def result(self, text: str) -> None:
        """Set the outcome, which is part of the line that is printed when the stage ends."""


class Progress(Protocol):
    """Shows the stages and the tables of a run."""

    def stage(self, name: str, total: float | None = None) -> AbstractContextManager[Stage]:
        """Begin a stage with a total amount of work, or None if the total is unknown."""

    def table(self, title: str, frame: "pd.DataFrame") -> None:
        """Show a small table, which stays on the screen."""


@dataclass
class Silent:
    """Shows nothing on the screen. The log still gets everything."""

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """See `Progress`."""
        del total
        with _timed(name) as stage:
            yield stage

    def table(self, title: str, frame: "pd.DataFrame") -> None:
        """See `Progress`."""
        log.info("%s\n%s", title, frame.to_string(index=False))


@dataclass
class Lines:
    """Prints one line per stage, when it ends: for logs and continuous integration.

    A long stage also prints a line when a quarter, half and three quarters of it are done. A stage
    of unknown length prints a line every ten seconds.
    """

    console: "Console"

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """See `Progress`."""
        with _timed(name) as stage:
            stage.total, stage.say = total, self._say
            with nullcontext() if total else _goes_on(stage, self._say):
                yield stage
        self._say(stage.line)

    def table(self, title: str, frame: "pd.DataFrame") -> None:
        """See `Progress`."""
        _print_table(self.console, title, frame)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Live:
    """Shows a bar for each stage that is under way, and a line for each that has ended.

    Args:
        console: the terminal to show them on.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """See `Progress`."""
        with _timed(name) as stage, _bars(self._console) as bars:
            stage.show = bars
            stage.bar = bars.add_task(_escaped(name), total=total, note="")
            yield stage
        self._console.print(f"[green]✓[/green] {_escaped(stage.line)}", highlight=False)

    def table(self, title: str, frame: "pd.DataFrame") -> None:
        """See `Progress`."""
        _print_table(self._console, title, frame)


@dataclass
class _Stage:
    name: str
    started: float = field(default_factory=time.monotonic)
    outcome: str = ""
    show: "RichProgress | None" = None
    bar: "TaskID | None" = None
    total: float | None = None
    say: Callable[[str], None] | None = None
    _done: float = 0.0
    _quarters: int = 0
    _said: float = field(default_factory=time.monotonic)

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        self._done += amount
        if self.say is not None and self.total:
            self._say_quarter(self.say, self.total, note)
        if self.show is not None and self.bar is not None:
            self.show.update(self.bar, advance=amount, note=_escaped(note))

    def result(self, text: str) -> None:
        self.outcome = text

    def _say_quarter(self, say: Callable[[str], None], total: float, note: str) -> None:
        quarters = int(4 * self._done / total)
        if not self._quarters < quarters < 4:
            return
        self._quarters, now = quarters, time.monotonic()
        # The line at the end is enough for a short stage.
        if now - self._said >= _QUIET_S:
            self._said = now
            say(f"{self.name}: {25 * quarters} %{', ' if note else ''}{note}")

    @property
    def line(self) -> str:
        seconds = time.monotonic() - self.started
        return f"{self.name} ({seconds:.1f} s){': ' if self.outcome else ''}{self.outcome}"


@contextmanager
def _timed(name: str) -> Iterator[_Stage]:
    stage = _Stage(name)
    log.info("%s …", name)
    yield stage
    log.info(stage.line)


@contextmanager
def _goes_on(stage: _Stage, say: Callable[[str], None]) -> Iterator[None]:
    """Print at regular intervals how long a stage has been running."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_SILENT_S):
            say(f"{stage.name}: {time.monotonic() - stage.started:.0f} s so far")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _bars(console: "Console") -> Iterator["RichProgress"]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield bars


def _print_table(console: "Console", title: str, frame: "pd.DataFrame") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    log.info("%s\n%s", title, frame.to_string(index=False))
    table = Table(
        title=_escaped(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in frame.columns:
        is_text = frame[name].dtype.kind not in "iuf"
        justify: Literal["left", "right"] = "left" if is_text else "right"
        header = _escaped(str(name).replace("_", " " if is_text else "\n"))
        # On a narrow terminal texts are wrapped. Numbers are not: half a number would mislead.
        table.add_column(header, justify=justify, no_wrap=not is_text, overflow="fold")
    for values in frame.itertuples(index=False):
        table.add_row(*(_escaped(number(value)) for value in values))
    console.print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
