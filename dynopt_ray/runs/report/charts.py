"""Charts of a run's tables. The same figure becomes plots/*.png and a part of the report.

Figures are small: on a phone one of them fills the screen without scaling, and on a desktop several
fit next to each other.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynopt_ray.errors import shortened
from dynopt_ray.runs.report.settings_table import FIGURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, which can be told apart with every kind of colour vision; its yellow, which
# is faint on white, and its black, which is that of the axes, come last. The report has variants of
# each colour for light and dark mode.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
INK, GRID, MUTED = "#1b1f24", "#d8dde3", "#8b949e"

_SIZE = (4.6, 3.2)
_MOST_NAMES = 12
_FEW = 8
_MOST_COLUMNS, _MOST_POINTS, _MOST_SERIES, _MOST_SETTINGS = 200, 20_000, 40, 100
_LONGEST_LABEL = 60
_LEGEND_CHARACTERS = 60  # the width of a figure, in characters of its legend
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart that a report may contain.

    Attributes:
        table: the name of the table that it is drawn from.
        needs: the columns that the table must have.
        title: its heading.
        draw: draws the table on the axes.
        height: table -> height of the figure in inches; smaller heights than the default are
            ignored.
    """

    table: str
    needs: frozenset[str]
    title: str
    draw: Callable[["Axes", "pd.DataFrame"], None]
    height: Callable[["pd.DataFrame"], float] = lambda _: _SIZE[1]

    def fits(self, table: "pd.DataFrame | None") -> bool:
        """Whether the table exists, and has rows and the columns that the chart needs."""
        return table is not None and len(table) > 0 and self.needs <= set(table.columns)


@contextmanager
def figure(chart: Chart, table: "pd.DataFrame") -> Iterator["Figure"]:
    """Draw a chart and yield its figure. Save it within the block, where its style is in force."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = _bounded(table)
    with (
        mpl.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}),
        warnings.catch_warnings(),
    ):
        # Names may hold characters that matplotlib's font lacks; the page uses another font. They
        # may also leave no room for the axes.
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        # Not pyplot: it would keep global state and might look for a display.
        drawn = Figure(figsize=(_SIZE[0], max(_SIZE[1], chart.height(table))))
        FigureCanvasAgg(drawn)
        chart.draw(drawn.subplots(), table)
        yield drawn


def cut(table: "pd.DataFrame") -> str:
    """Return a remark if a chart of this table leaves a part of it out, else an empty string."""
    return "" if _bounded(table).shape == table.shape else " (a part of the table)"


def _bounded(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return so much of a table as a chart can show; a page of any table stays readable."""
    table = table.iloc[:, :_MOST_COLUMNS]
    if set(FIGURES) <= set(table.columns):
        return table.head(_MOST_SETTINGS)
    for name in ("series", "phase"):
        if name in table:
            table = table[table[name].isin(table[name].unique()[:_MOST_SERIES])]
    return table.iloc[:: max(1, -(-len(table) // _MOST_POINTS))]


def _plain(name: object) -> str:
    """Return a name as a label that is shown as it is.

    matplotlib would read dollar signs as formulas, and leave out labels with a leading underscore.
    """
    text = "".join(c if c.isprintable() else " " for c in shortened(str(name), _LONGEST_LABEL))
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _pareto(axes: "Axes", table: "pd.DataFrame") -> None:
    """Draw accuracy against cost: each series in its own colour, and the front as a step line."""
    from dynopt_ray.cluster import pareto_front  # also imports Ray, which is slow

    series = table["series"] if "series" in table else np.full(len(table), "trials")
    for name, points in table.groupby(series, sort=False):
        alone = len(points) == 1
        axes.scatter(
            points["cost"], points["accuracy"], label=_plain(name),
            s=60 if alone else 18, marker="D" if alone else "o", alpha=1 if alone else 0.75,
            zorder=3 if alone else 2,
        )  # fmt: skip
    front = pareto_front(table)
    axes.step(
        front["cost"], front["accuracy"], where="post", color=INK, linewidth=1, label="front",
        zorder=1,
    )  # fmt: skip
    named = front[front["name"].notna()] if "name" in front else front[:0]
    for _, point in named[:_MOST_NAMES].iterrows():
        place = (point["cost"], point["accuracy"])
        axes.annotate(
            _plain(point["name"]), place, fontsize=8, xytext=(3, 4), textcoords="offset points"
        )
    axes.set(xlabel="cost relative to the start", ylabel="accuracy")
    axes.margins(x=0.15, y=0.12)  # room for the names of the outermost points
    axes.set_xlim(left=0)
    _legend(axes)


def _widths(axes: "Axes", table: "pd.DataFrame") -> None:
    """Draw one step line per width group: widths are constant between decisions or rounds."""
    from matplotlib.ticker import MaxNLocator

    time, *groups = table.columns  # the first is "decision" or "round"
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for name in groups[: len(COLOURS)]:
        axes.step(table[time], table[name], where="post", label=_plain(f"group {name}"))
    if len(groups) > len(COLOURS):
        for name in groups[len(COLOURS) :]:
            axes.step(table[time], table[name], where="post", color=MUTED, linewidth=0.7)
        axes.plot([], [], color=MUTED, label=f"{len(groups) - len(COLOURS)} more")
    axes.set(xlabel=_plain(time), ylabel="units")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _lines(y: str, label: str, *, log: bool = False) -> Callable[["Axes", "pd.DataFrame"], None]:
    """Return a function that draws one line per phase of training, or per phase of each run."""

    def draw(axes: "Axes", table: "pd.DataFrame") -> None:
        table = table[table[y].notna()]
        series = table["phase"] if "phase" in table else np.full(len(table), y)
        for name, part in table.groupby(series, sort=False):
            marker = "." if len(part) < _FEW else None
            axes.plot(part["step"], part[y], label=_plain(name), marker=marker)
        axes.set(xlabel="step", ylabel=label)
        if log and len(table) and (table[y] > 0).all() and table[y].max() > 20 * table[y].min():
            axes.set_yscale("log")
        if table.groupby(series).ngroups > 1:
            _legend(axes)

    return draw


def _stream(axes: "Axes", table: "pd.DataFrame") -> None:
    """Draw accuracy over a stream, with true drift (line) and detected drift (triangle)."""
    marks = table["mark"].astype(object).where(table["mark"].notna(), "")
    points = table[marks == ""]
    for name, part in points.groupby("series", sort=False):
        axes.plot(part["event"], part["accuracy"], label=_plain(name))
    for number, event in enumerate(sorted(set(table.loc[marks == "drift", "event"]))):
        axes.axvline(
            event, color=INK, linestyle="--", linewidth=1, label="drift" if number == 0 else None
        )
    found = table.loc[marks == "detected", "event"]
    if len(found):
        height = np.full(len(found), float(points["accuracy"].min()))
        axes.scatter(found, height, marker="^", s=26, color=COLOURS[4], label="detected", zorder=3)
    axes.set(xlabel="event", ylabel="accuracy per window")
    _legend(axes)


def _policy(axes: "Axes", table: "pd.DataFrame") -> None:
    """Draw the return per episode over the training of a policy."""
    series = table["series"] if "series" in table else np.full(len(table), "policy")
    for name, part in table.groupby(series, sort=False):
        axes.plot(part["steps"], part["episode_return"], label=_plain(name))
    if table.groupby(series).ngroups > 1:
        _legend(axes)
    axes.set(xlabel="environment steps", ylabel="gain in smooth utility per episode")


def _slots(axes: "Axes", table: "pd.DataFrame") -> None:
    """Draw how many slots of each machine ran a trial over time."""
    from matplotlib.ticker import MaxNLocator

    end = table["seconds"].max()
    for name, part in table.groupby("machine", sort=False):
        steps = np.append(part["seconds"].to_numpy(), end)
        axes.stairs(part["busy"].to_numpy(), steps, baseline=None, label=_plain(name), zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="seconds", ylabel="busy slots", ylim=(0, None))
    if table.groupby("machine").ngroups > 1:
        _legend(axes)


def _settings(axes: "Axes", table: "pd.DataFrame") -> None:
    """Draw one row per option of one setting, and one colour per combination of the others."""
    rows, series = _rows_and_series(table)
    order = table.groupby(rows)["accuracy"].max().sort_values().index.tolist()
    names = list(dict.fromkeys(series))
    lowest = _lowest_shown(table["accuracy"])
    for number, name in enumerate(names):
        part = table[series == name]
        # Shifted vertically, so that error bars at the same accuracy do not hide each other.
        shift = 0.5 * ((number + 0.5) / len(names) - 0.5)
        heights = part[rows].map(order.index) - shift
        shown, below = part["accuracy"] >= lowest, part["accuracy"] < lowest
        drawn = axes.errorbar(
            part["accuracy"][shown], heights[shown], xerr=part["accuracy_sd"][shown],
            label=_plain(name), fmt="o", markersize=4, linewidth=1,
        )  # fmt: skip
        axes.plot(
            [lowest] * int(below.sum()), heights[below], "<", markersize=4,
            color=drawn.lines[0].get_color(), clip_on=False,
        )  # fmt: skip
    axes.set_yticks(range(len(order)), labels=list(map(_plain, order)))
    axes.set(xlabel="accuracy (mean ± sd over seeds)")
    if table["accuracy"].min() < lowest:
        axes.set(xlabel=f"accuracy (mean ± sd over seeds; ◂ below {lowest:.2f})")
        axes.set_xlim(left=lowest)
    axes.margins(y=0.03)
    if len(names) > 1:
        axes.figure.legend(loc="outside upper center", ncols=3)


def _legend(axes: "Axes") -> None:
    """Add a legend above the axes, where it hides no point."""
    labels = axes.get_legend_handles_labels()[1]
    longest = max(map(len, labels), default=0)
    ncols = max(1, min(len(labels), 4, _LEGEND_CHARACTERS // (longest + 5)))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=ncols, borderaxespad=0.2)


def _lowest_shown(values: "pd.Series[float]") -> float:
    """Return the least accuracy to show: three interquartile ranges below the first quartile.

    Otherwise a configuration that failed completely would squeeze all others together.
    """
    low, high = values.quantile([0.25, 0.75])
    return float(low - 3 * (high - low))


def _widths_height(table: "pd.DataFrame") -> float:
    return 2.6 + 0.2 * min(len(table.columns), len(COLOURS) + 1)  # for the legend


def _settings_height(table: "pd.DataFrame") -> float:
    return 1.2 + 0.24 * int(table[_rows_and_series(table)[0]].nunique())


def _rows_and_series(table: "pd.DataFrame") -> tuple[str, "pd.Series[str]"]:
    """Return the setting with the most options, and for each row the options of the others."""
    import pandas as pd

    settings = list(table.columns[: list(table.columns).index(FIGURES[0])])
    rows = max(settings, key=lambda name: table[name].nunique())
    others = [name for name in settings if name != rows]
    named = [
        ", ".join(v if v[0].isalpha() else f"{n} {v}" for n, v in zip(others, values, strict=True))
        for values in table[others].itertuples(index=False)
    ]
    return rows, pd.Series(named, index=table.index)


def _chart(
    table: str, needs: Sequence[str], title: str, draw: Callable[["Axes", "pd.DataFrame"], None]
) -> Chart:
    return Chart(table, frozenset(needs), title, draw)


CHARTS: Mapping[str, Chart] = {
    "settings": Chart(
        "settings", frozenset(FIGURES), "Settings compared", _settings, _settings_height
    ),
    "pareto": _chart("pareto", ["cost", "accuracy"], "Accuracy against cost", _pareto),
    "widths": Chart("widths", frozenset(), "Widths over time", _widths, _widths_height),
    "policy": _chart("policy", ["steps", "episode_return"], "Training of the policy", _policy),
    "stream": _chart(
        "stream", ["event", "accuracy", "series", "mark"], "Learning on the stream", _stream
    ),
    "slots": _chart("slots", ["seconds", "machine", "busy"], "Slots that ran a trial", _slots),
    "accuracy": _chart(
        "curves", ["step", "accuracy"], "Validation accuracy", _lines("accuracy", "accuracy")
    ),
    "loss": _chart("curves", ["step", "loss"], "Loss", _lines("loss", "training loss", log=True)),
    "lr": _chart("curves", ["step", "lr"], "Learning rate", _lines("lr", "learning rate")),
}
"""All charts that a report may contain, by the name of their file in plots/."""


def drawable(tables: Mapping[str, Any]) -> dict[str, Chart]:
    """Return the charts that can be drawn from these tables."""
    return {name: chart for name, chart in CHARTS.items() if chart.fits(tables.get(chart.table))}
