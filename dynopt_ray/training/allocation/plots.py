"""`plot_sensitivity`: draw the curves of `sensitivity`."""

from typing import TYPE_CHECKING

import numpy as np

from dynopt_ray.training.allocation.curves import check_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, whose colours differ for every kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
_MUTED, _GRID = "#8b949e", "#d8dde3"
# The part of viridis without the yellow end, which is hard to see on white.
_DEPTHS = ("viridis", 0.0, 0.9)
_MOST_TICKS = 12


def plot_sensitivity(curves: "pd.DataFrame") -> "Figure":
    """Draw the metric against the removed fraction, with one line for each group.

    Up to eight groups are named in a legend. If there are more, the colour shows the depth in the
    network at which the group is produced.

    Args:
        curves: what `sensitivity` returned.

    Returns:
        A figure that is not managed by pyplot. Save it by `figure.savefig("sensitivity.png")`.

    Raises:
        TypeError: the table lacks a column.

    Example:
        >>> from dynopt_ray.tasks import load_task
        >>> from dynopt_ray.training import sensitivity
        >>> task = load_task("digits-mlp", {"hidden": [16, 8]})
        >>> figure = plot_sensitivity(sensitivity(task.new_model(seed=0), task))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['0', '2', 'as it is']
    """
    from matplotlib.figure import Figure  # slow to import, and not needed to use the library

    check_columns(curves, ("group", "remove_fraction", "metric"))
    # Do not use pyplot: it keeps figures until they are closed, and may need a display.
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    lines = {str(name): rows for name, rows in curves.groupby("group", sort=False)}
    if len(lines) <= len(_COLOURS):
        for colour, (name, rows) in zip(_COLOURS, lines.items(), strict=False):
            axes.plot(rows["remove_fraction"], rows["metric"], ".-", color=colour, label=name)
    else:
        _draw_by_depth(axes, lines)
    start = curves.loc[curves["remove_fraction"] == 0, "metric"]
    for metric in start[:1]:  # every group has the same
        axes.axhline(metric, color=_MUTED, linestyle="--", linewidth=1, label="as it is")
    axes.set(xlabel="fraction removed, of this group alone", ylabel="validation metric")
    axes.grid(color=_GRID, linewidth=0.6)
    axes.spines[["right", "top"]].set_visible(False)
    # Above the axes, where it hides no point.
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5)
    return figure


def _draw_by_depth(axes: "Axes", lines: "dict[str, pd.DataFrame]") -> None:
    """Draw thin lines coloured by depth, and a colour bar that names some of the groups."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    name, first, last = _DEPTHS
    shades = ListedColormap(mpl.colormaps[name](np.linspace(first, last, len(lines))))
    for place, rows in enumerate(lines.values()):
        axes.plot(rows["remove_fraction"], rows["metric"], color=shades(place), linewidth=0.9)
    edges = np.arange(len(lines) + 1) - 0.5
    ticks = np.unique(np.linspace(0, len(lines) - 1, _MOST_TICKS).round().astype(int))
    bar = axes.figure.colorbar(
        ScalarMappable(BoundaryNorm(edges, len(lines)), shades),
        ax=axes,
        ticks=ticks,
        label="group, in forward order",
    )
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([list(lines)[tick] for tick in ticks])
    bar.ax.invert_yaxis()
