"""The table of trained networks behind `dynopt/TabularArchitecture-v0`.

`experiments/tabular_networks.py` trained the networks and wrote the table. Each row has the figures
of a network of two hidden layers on the handwritten digits: its widths, its latest edit, and its
age, which is the number of stretches of training since that edit. All networks are trained for 200
steps, edited at most once, and then trained for 20 steps per stretch. Figures are means over five
networks from different seeds.
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

EDITS = ("none", "grow_1", "shrink_1", "grow_2", "shrink_2")
"""The latest edit of a network: none, or a hidden layer that was doubled or halved."""

TRAIN_STEPS = 20
"""Optimizer steps of a stretch of training."""

COST_COLUMNS = ("params", "flops")
"""The costs that the table has."""

LayerWidths = tuple[int, int]
NetworkKey = tuple[LayerWidths, str, int]
"""Widths, latest edit and age."""


@dataclass(frozen=True)
class NetworkFigures:
    """The figures of a network.

    Attributes:
        params: number of parameters.
        flops: FLOPs of a forward pass on one sample.
        metric: accuracy on validation data.
        smooth: `Metrics.smooth` on validation data.
        loss: validation loss.
        test_metric: accuracy on test data.
        test_smooth: `Metrics.smooth` on test data.
    """

    params: float
    flops: float
    metric: float
    smooth: float
    loss: float
    test_metric: float
    test_smooth: float


@dataclass(frozen=True, eq=False)
class NetworkTable:
    """The figures of all networks.

    Attributes:
        rows: widths, latest edit and age -> figures.
        widths: the widths that a layer can have, each twice the previous one.
        largest_age: the largest age in the table.
    """

    rows: dict[NetworkKey, NetworkFigures]
    widths: tuple[int, ...]
    largest_age: int


@lru_cache(maxsize=1)
def network_table() -> NetworkTable:
    """Read the table that the package contains, once per process."""
    text = files("dynopt_envs").joinpath("tabular_networks.csv").read_text(encoding="utf-8")
    rows: dict[NetworkKey, NetworkFigures] = {}
    for row in csv.DictReader(text.splitlines()):
        widths = int(row.pop("width_1")), int(row.pop("width_2"))
        key = widths, row.pop("edit"), int(row.pop("age"))
        rows[key] = NetworkFigures(**{name: float(value) for name, value in row.items()})
    return NetworkTable(
        rows=rows,
        widths=tuple(sorted({widths[0] for widths, _, _ in rows})),
        largest_age=max(age for _, _, age in rows),
    )
