"""The interface of trials, and the measurements that they yield. Nothing here imports Ray."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, Protocol

from dynopt_ray.errors import DivergedError, SearchError, did_you_mean
from dynopt_ray.policies import utility

TrialStatus = Literal["waiting", "running", "finished", "stopped", "failed"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A measurement of a trial while it runs.

    Attributes:
        step: number of optimizer steps so far.
        accuracy: the task's metric on validation data; larger is better.
        cost: the network's cost relative to its cost at the start.
        final: whether this is the last measurement of the trial. A trial that yields measurements
            and ends without a final one counts as stopped early.
        details: further figures for the tables, such as the loss.
        network: returns the network in the format of `structure.save`. It is called at most once:
            at the final measurement, if the search keeps the network.
        state: returns everything that the trial needs to continue from here: nested dicts and lists
            of numbers, texts and tensors. It is called at most once, before the trial goes on. None
            if the trial cannot be continued and has to begin anew.
        row_scores: a score for each of some validation rows, the same rows in all trials; larger is
            better. With them, the search can tell a better trial from a luckier one. Only those of
            the final measurement are used.
    """

    step: int
    accuracy: float
    cost: float
    final: bool = False
    details: Mapping[str, float] = field(default_factory=dict)
    network: Callable[[], bytes] | None = None
    state: Callable[[], Mapping[str, Any]] | None = None
    row_scores: Sequence[float] | None = None

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


Measured = Measurement | Mapping[str, Any] | Iterable[Measurement | Mapping[str, Any]]
"""What a trial gives: an iterator of measurements, a list of them, or one."""


class Trial(Protocol):
    """Runs one configuration and gives measurements. A search calls it once per configuration.

    It yields measurements, or returns them: one, which is final, or a list, whose last one is
    final. A mapping such as {"accuracy": 0.9, "cost": 0.5} may stand for a measurement. Its step is
    1 and its cost 0 unless given; further numbers in it are details.

    It must be picklable by cloudpickle, and may depend only on its own fields and the
    configuration. If its measurements have a `state`, it must accept a keyword argument `state`:
    the state to continue from. It then yields the measurements that follow that state. A trial
    whose process or node died, or that a scheduler paused, is continued in this way; one without
    states begins anew. It may have a method `check(config)` that raises `SpecError` for a
    configuration that it cannot run. Before any trial starts, `check` is called with a few
    configurations that cover the space.
    """

    def __call__(self, config: Config, /) -> Measured:
        """Run one trial. The search may stop iterating after any measurement."""


_COMPUTED = {"utility", "trial", "status", "error"}
UNFINISHED = "the trial ended without a final measurement; yield the last one with final=True"


def measured(
    trial: Trial, config: Config, state: Mapping[str, Any] | None = None
) -> Iterator[Measurement]:
    """Run a trial, and yield its measurements up to the final one.

    Args:
        trial: the trial to run.
        config: its configuration.
        state: the state to continue from; None begins anew.

    Raises:
        SearchError: the trial gives no measurement, or something else than measurements.
    """
    given = trial(config) if state is None else trial(config, state=state)  # type: ignore[call-arg]
    is_empty = True
    for measurement in _measurements(given):
        is_empty = False
        yield measurement
        if measurement.final:
            return
    if is_empty:
        raise SearchError(
            "the trial gave no measurement; yield Measurement(step, accuracy, cost, final=True)"
        )


def failure(error: BaseException) -> str:
    """Return the error of a trial as text: its type, its message, and its notes."""
    return " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def _measurements(given: object) -> Iterator[Measurement]:
    """Yield the measurements of a trial, in whatever form it gives them."""
    if isinstance(given, Measurement | Mapping):
        yield replace(_measurement(given), final=True)
    elif isinstance(given, list | tuple):
        for place, one in enumerate(given, start=1):
            measurement = _measurement(one)
            yield replace(measurement, final=measurement.final or place == len(given))
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes):
        yield from map(_measurement, given)
    else:
        raise SearchError(
            f"the trial returned {given!r:.80}; yield measurements, or return one or a mapping "
            "such as {'accuracy': 0.9, 'cost': 0.5}"
        )


def _measurement(given: object) -> Measurement:
    """Return a measurement, which may be given as a mapping."""
    if isinstance(given, Measurement):
        return given
    if not isinstance(given, Mapping):
        raise SearchError(
            f"the trial gave {given!r:.80} as a measurement; give a Measurement, or a mapping such "
            "as {'accuracy': 0.9, 'cost': 0.5}"
        )
    if "accuracy" not in given:
        closest = did_you_mean("accuracy", map(str, given))
        raise SearchError(
            f"the trial gave a measurement with the keys {', '.join(map(str, given)) or 'none'}, "
            f"but without 'accuracy', which the search maximises.{closest} Rename the key"
        )
    optional = ("network", "state", "row_scores")
    of_measurement = {"step": 1, "cost": 0.0, "final": False, **dict.fromkeys(optional)}
    figures = {key: given.get(key, default) for key, default in of_measurement.items()}
    details = {key: given[key] for key in given if key not in {*of_measurement, "accuracy"}}
    if taken := _COMPUTED & given.keys():
        raise SearchError(
            f"the trial gave {', '.join(sorted(taken))}, which the search computes itself "
            "(utility is accuracy minus cost_weight times cost); rename it"
        )
    for name, value in chain(details.items(), [("accuracy", given["accuracy"])]):
        if isinstance(value, str) or not hasattr(value, "__float__"):
            raise SearchError(f"the trial gave {name} = {value!r:.80}; it must be a number")
    return Measurement(
        accuracy=float(given["accuracy"]),
        details={str(name): float(value) for name, value in details.items()},
        **figures,
    )
