"""What trials say while they run, and the tables made of it. Nothing here imports Ray."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dynopt_ray.errors import DivergedError
from dynopt_ray.policies import utility

if TYPE_CHECKING:
    pass

TrialStatus = Literal["running", "finished", "stopped", "failed"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """How a trial is doing.

    Attributes:
        step: optimizer steps so far.
        accuracy: the task's metric on validation data; larger is better.
        cost: the network's cost relative to where it started.
        final: whether this is the trial's last measurement. Trials that end without one were
            stopped early.
        details: more figures for the tables, such as the loss.
        network: what gives the network as `structure.save` writes it. It is called once, at the
            final measurement, and only if no trial before was better.
    """

    step: int
    accuracy: float
    cost: float
    final: bool = False
    details: Mapping[str, float] = field(default_factory=dict)
    network: Callable[[], bytes] | None = None

    def row(self, cost_weight: float) -> dict[str, Any]:
        """The figures, with utility = accuracy − cost_weight · cost.

        Raises:
            DivergedError: accuracy or cost is not finite.
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
    """What is searched over: a configuration in, measurements out.

    It must pickle (with cloudpickle), and depend on nothing but its own fields and the
    configuration. A trial may have `check(config)`, which raises `SpecError` for a
    configuration that it cannot run; it is called for a few that cover the space before
    anything starts.
    """

    def __call__(self, config: Config) -> Iterator[Measurement]:
        """Run one trial. It may be abandoned after any measurement."""


def measured(
    trial: Trial,
    config: Config,
    cost_weight: float,
    keep: Callable[[float, float, Callable[[], bytes]], None],
) -> Iterator[dict[str, Any]]:
    """The rows of a trial's measurements; the network of the final one is offered to `keep`.

    Args:
        trial: what runs.
        config: its configuration.
        cost_weight: λ.
        keep: takes utility, cost and what gives the network.

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
