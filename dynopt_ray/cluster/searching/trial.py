"""The interface of trials, and the measurements that they yield. Nothing here imports Ray."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dynopt_ray.errors import DivergedError
from dynopt_ray.policies import utility

TrialStatus = Literal["running", "finished", "stopped", "failed"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A measurement of a trial while it runs.

    Attributes:
        step: number of optimizer steps so far.
        accuracy: the task's metric on validation data; larger is better.
        cost: the network's cost relative to its cost at the start.
        final: whether this is the last measurement of the trial. A trial that ends without one
            counts as stopped early.
        details: further figures for the tables, such as the loss.
        network: returns the network in the format of `structure.save`. It is called at most once:
            at the final measurement, if no earlier trial was better.
    """

    step: int
    accuracy: float
    cost: float
    final: bool = False
    details: Mapping[str, float] = field(default_factory=dict)
    network: Callable[[], bytes] | None = None

    def row(self, cost_weight: float) -> dict[str, Any]:
        """Return the figures as a row of a table, with utility = accuracy − cost_weight · cost.

        Raises:
            DivergedError: the accuracy or the cost is not finite.
        """
        figures = {"accuracy": float(self.accuracy), "cost": float(self.cost)}
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergedError(f"the {name} is {value} at step {self.step}")
        return {
            "step": self.step,
            **figures,
            "utility": utility(figures["accuracy"], figures["cost"], cost_weight),
            **self.details,
            "final": self.final,
        }


class Trial(Protocol):
    """Runs one configuration and yields measurements. A search calls it once per configuration.

    It must be picklable by cloudpickle, and may depend only on its own fields and the
    configuration. It may have a method `check(config)` that raises `SpecError` for a
    configuration that it cannot run. Before any trial starts, `check` is called with a few
    configurations that cover the space.
    """

    def __call__(self, config: Config) -> Iterator[Measurement]:
        """Run one trial. The search may stop iterating after any measurement."""


def measured(
    trial: Trial,
    config: Config,
    cost_weight: float,
    keep: Callable[[float, float, Callable[[], bytes]], None],
) -> Iterator[dict[str, Any]]:
    """Run a trial and yield a row per measurement; offer the final network to `keep`.

    Args:
        trial: the trial to run.
        config: its configuration.
        cost_weight: λ of utility = accuracy − λ · cost.
        keep: called with the utility, the cost and a function that returns the network.

    Raises:
        DivergedError: a figure is not finite.
    """
    for measurement in trial(config):
        row = measurement.row(cost_weight)
        if measurement.final and measurement.network is not None:
            keep(row["utility"], row["cost"], measurement.network)
        yield row
        if measurement.final:
            return
