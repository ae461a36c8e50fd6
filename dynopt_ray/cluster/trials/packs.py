"""Packs: the trials that share a slot. They take turns, or are computed together.

Nothing here imports Ray.
"""

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dynopt_ray.cluster.trials.trial import Config, Measurement, Trial, measured


@dataclass(frozen=True)
class Advance:
    """What came of running a trial up to its next measurement.

    Attributes:
        measurement: None if the trial ended or failed.
        error: what the trial raised, or None.
        elapsed_s: how long it ran, in seconds. Trials that were computed together share the time.
    """

    measurement: Measurement | None
    elapsed_s: float
    error: BaseException | None = None


class TrialPack(Protocol):
    """The trials of a slot."""

    def start(self, number: int, config: Config, state: Mapping[str, Any] | None) -> None:
        """Add a trial: begin it, or continue it from a state. It may raise what it likes."""

    def advance(self, numbers: Sequence[int]) -> Mapping[int, Advance]:
        """Run trials up to the next measurement of each. An error ends only its own trial."""

    def close(self, number: int) -> None:
        """Take a trial out, whether it has ended or not."""


@runtime_checkable
class PackableTrial(Protocol):
    """A trial whose configurations can be computed together.

    The figures of a member of a pack must be those that the same configuration gives in a pack of
    its own, whatever its neighbours are.
    """

    def new_pack(self) -> TrialPack:
        """Return a pack without trials."""

    def family(self, config: Config) -> Hashable:
        """Return what configurations that are computed together have in common.

        Raises:
            SpecError: this configuration cannot be part of a pack.
        """


class TurnTaking:
    """Trials that take turns.

    Args:
        trial: runs one configuration.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._rows: dict[int, Iterator[Measurement]] = {}

    def start(self, number: int, config: Config, state: Mapping[str, Any] | None) -> None:
        """See `TrialPack`."""
        self._rows[number] = measured(self._trial, config, state)

    def advance(self, numbers: Sequence[int]) -> Mapping[int, Advance]:
        """See `TrialPack`."""
        return {number: self._advanced(number) for number in numbers}

    def close(self, number: int) -> None:
        """See `TrialPack`."""
        close = getattr(self._rows.pop(number, None), "close", None)
        if close is not None:
            close()

    def _advanced(self, number: int) -> Advance:
        begun = time.monotonic()
        try:
            measurement = next(self._rows[number], None)
        except (Exception, SystemExit) as error:
            return Advance(None, time.monotonic() - begun, error)
        return Advance(measurement, time.monotonic() - begun)


def new_pack(trial: Trial, *, together: bool) -> TrialPack:
    """Return a pack without trials.

    Args:
        trial: runs one configuration.
        together: whether to compute trials together, if they can be.
    """
    if together and isinstance(trial, PackableTrial):
        return trial.new_pack()
    return TurnTaking(trial)
