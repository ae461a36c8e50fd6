"""Draws a network and its episode so far, for `render_mode="rgb_array"`.

The left half shows the network: one column of units per width group, with the widths at the start
as an outline, and the group that the next action changes in another colour. The right half shows
how accuracy, relative cost and utility changed with each decision. matplotlib is imported when the
first picture is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from dynopt_ray.errors import UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (10.0, 4.5), 100
_GREY, _LIGHT, _BLUE, _ORANGE, _GREEN = "#555555", "#c8c8c8", "#1f5fa8", "#d9720f", "#2a8a4a"
_MOST_TICKS = 12
_SHAPES = {"grow": "^", "shrink": "v", "prune": "s", "keep": "o", "stop": "X"}


@dataclass(frozen=True)
class EpisodeFrame:
    """A network after a decision of its episode.

    Attributes:
        widths: the width of each group.
        start_widths: the same at the start of the episode.
        cursor: index of the group that the next action changes.
        action: label of the decision; None at the start.
        metric: the task's metric on validation data.
        relative_cost: the cost over that at the start.
        utility: metric − λ · relative cost.
        cost_weight: λ.
    """

    widths: Sequence[int]
    start_widths: Sequence[int]
    cursor: int
    action: str | None
    metric: float
    relative_cost: float
    utility: float
    cost_weight: float


def check_render_mode(render_mode: str | None) -> str | None:
    """Return a render mode of a single environment.

    Raises:
        UnknownNameError: it is neither "rgb_array" nor None.
    """
    if render_mode not in (None, "rgb_array"):
        raise UnknownNameError("render mode", str(render_mode), ["rgb_array"])
    return render_mode


def draw_episode(frames: Sequence[EpisodeFrame]) -> NDArray[np.uint8]:
    """Return a picture of the latest network and of the episode so far.

    Args:
        frames: the network at the start and after each decision.

    Returns:
        uint8 (450, 1000, 3), red, green and blue.

    Raises:
        ResetNeeded: there are no frames, because no episode has started.
    """
    if not frames:
        raise ResetNeeded("no episode has started, so there is nothing to draw; call reset() first")
    # Not pyplot, which would keep the figure and choose a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    network, course = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    _draw_network(network, frames[-1])
    _draw_course(course, frames)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.asarray(pixels)[..., :3].copy()


def _draw_network(axes: "Axes", frame: EpisodeFrame) -> None:
    """Draw each group as a column whose height is proportional to the square root of its width."""
    widths, starts = np.asarray(frame.widths), np.asarray(frame.start_widths)
    # With heights proportional to widths, a layer of 2 units next to one of 64 would be a dot.
    largest = np.sqrt(max(widths.max(), starts.max()))
    heights, before = np.sqrt(widths) / largest, np.sqrt(starts) / largest
    for left in range(len(widths) - 1):
        axes.fill(
            [left + 0.16, left + 0.84, left + 0.84, left + 0.16],
            np.array([heights[left], heights[left + 1], -heights[left + 1], -heights[left]]) / 2,
            color=_LIGHT,
            alpha=0.45,
            linewidth=0,
        )
    for place, (height, start) in enumerate(zip(heights, before, strict=True)):
        colour = _ORANGE if place == frame.cursor else _BLUE
        axes.bar(place, height, 0.32, bottom=-height / 2, color=colour, alpha=0.9)
        axes.bar(place, start, 0.4, bottom=-start / 2, fill=False, edgecolor=_GREY, linestyle="--")
        _draw_units(axes, place, int(widths[place]), float(height))
        label = f"{widths[place]}" + (
            f"\n(was {starts[place]})" if widths[place] != starts[place] else ""
        )
        axes.text(place, -max(height, start) / 2 - 0.04, label, ha="center", va="top", fontsize=11)
    axes.set_xlim(-0.6, len(widths) - 0.4)
    axes.set_ylim(-0.72, 0.6)
    axes.set_title("units per group; orange: the next to decide about", fontsize=11)
    axes.set_axis_off()


def _draw_units(axes: "Axes", place: int, width: int, height: float) -> None:
    """Draw lines between the units of a column, unless they would be too dense to be seen."""
    if width <= 64:
        edges = np.linspace(-height / 2, height / 2, width + 1)[1:-1]
        axes.hlines(edges, place - 0.16, place + 0.16, colors="white", linewidth=0.8)


def _draw_course(axes: "Axes", frames: Sequence[EpisodeFrame]) -> None:
    """Draw accuracy, relative cost and utility over the decisions."""
    decisions = np.arange(len(frames))
    for name, label, colour in (
        ("metric", "metric", _BLUE),
        ("relative_cost", "relative cost", _GREY),
        ("utility", f"utility (λ = {frames[-1].cost_weight:.2f})", _GREEN),
    ):
        values = [getattr(frame, name) for frame in frames]
        axes.plot(decisions, values, color=colour, label=f"{label}: {values[-1]:.3f}", linewidth=2)
        for decision, frame in enumerate(frames):
            shape = _SHAPES.get(frame.action or "keep", "D")
            axes.plot(decision, values[decision], shape, color=colour, markersize=7)
    every = max(1, -(-len(frames) // _MOST_TICKS))
    axes.set_xticks(
        decisions[::every],
        [frame.action or "start" for frame in frames[::every]],
        rotation=40 if len(frames) > 7 else 0,
    )
    axes.set_xlim(-0.3, max(len(frames) - 1, 1) + 0.3)
    axes.set_xlabel("decision")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, frameon=False, fontsize=9)
