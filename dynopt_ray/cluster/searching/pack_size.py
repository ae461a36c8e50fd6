"""How many trials a pack should hold: checked if it is given, measured if it is not."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dynopt_ray.cluster.resources import use_resources
from dynopt_ray.cluster.searching.space import Space
from dynopt_ray.cluster.trials import Advance, Config, PackableTrial, Trial
from dynopt_ray.errors import SearchError, SpecError

PackSize = int | Literal["auto"] | None
"""The number of trials of a pack; "auto" is measured, None is no pack."""

_SIZES = (1, 4, 16, 64, 256)
_TURNS = 3
_BUDGET_S = 10.0
_GOOD_ENOUGH = 0.9
_MORE = 1.1
_MOST_CONFIGS = 64


@dataclass(frozen=True)
class PackRates:
    """How fast packs are.

    Attributes:
        steps_per_s: number of trials -> optimizer steps per second of all of them together.
    """

    steps_per_s: Mapping[int, float]

    @property
    def best(self) -> int:
        """The smallest number of trials that is nearly as fast as the fastest."""
        enough = _GOOD_ENOUGH * max(self.steps_per_s.values())
        return min(size for size, rate in self.steps_per_s.items() if rate >= enough)

    def __str__(self) -> str:
        rates = ", ".join(f"{size}: {rate:,.0f}" for size, rate in self.steps_per_s.items())
        return f"packs of {self.best} trials (steps per second of packs of {rates})"


def check_size(pack: Any) -> PackSize:
    """Return the size of a pack as it was given.

    Raises:
        SpecError: it is no size.
    """
    is_number = isinstance(pack, int) and not isinstance(pack, bool) and pack >= 1
    if not is_number and pack not in (None, "auto"):
        raise SpecError(f"pack is {pack!r:.40}; give a number of trials, at least 1, or 'auto'")
    size: PackSize = pack
    return size


def check_pack(trial: Trial, space: Space, pack: PackSize, *, order: str = "arrival") -> None:
    """Refuse a pack that cannot be, before any training.

    Raises:
        SpecError: the size is wrong; or the trials cannot be trained together, or only in several
            families.
    """
    if check_size(pack) is None:
        return
    if pack == "auto":
        if order == "drawn":
            raise SpecError(
                "pack is 'auto', which depends on the speed of the machine, but with order='drawn' "
                "the search should repeat; give a number"
            )
        return
    if not isinstance(trial, PackableTrial):
        return
    configs = [*space.probes()]
    families = [trial.family(config) for config in configs]
    for config, family in zip(configs, families, strict=True):
        if pack != 1 and family != families[0]:
            raise SpecError(
                f"pack is {pack}, but the space has several families of trials, which cannot be "
                f"trained together: {configs[0]!r:.200} is of {families[0]}, but {config!r:.200} "
                f"of {family}. Fix the optimizer and the batch size, or give pack='auto', which "
                "trains each family together"
            )


def why_not(trial: Trial, space: Space) -> str | None:
    """Return why trials cannot be trained together, or None if they can be."""
    if not isinstance(trial, PackableTrial):
        return (
            "its trials are functions, which take turns; give pack a number, such as 64, if they "
            "take milliseconds"
        )
    try:
        for config in space.probes():
            trial.family(config)
    except SpecError as error:
        return str(error)
    return None


def pack_rates(
    trial: PackableTrial, configs: Sequence[Config], *, most: int, budget_s: float
) -> PackRates:
    """Measure how fast packs of a few sizes are.

    Larger packs are tried as long as they are faster, and there is time.

    Args:
        trial: runs configurations.
        configs: configurations to try.
        most: the largest number of trials of a pack.
        budget_s: no pack is tried whose members could not be started within this time, in seconds.
    """
    deadline = time.monotonic() + budget_s
    members = _Members(trial, configs)
    members.steps_in_a_turn(1)  # the first steps are slow
    rates: dict[int, float] = {}
    for size in [*(size for size in _SIZES if size < most), most]:
        if rates and time.monotonic() + members.start_s(size) > deadline:
            break
        before = max(rates.values(), default=0.0)
        rates[size] = max(members.steps_in_a_turn(size) for _ in range(_TURNS))
        if rates[size] < _MORE * before:
            break
    return PackRates(rates)


class _Members:
    """The members of a pack that is measured."""

    def __init__(self, trial: PackableTrial, configs: Sequence[Config]) -> None:
        self._pack = trial.new_pack()
        self._configs = itertools.cycle(configs)
        self._numbers = itertools.count()
        self._steps: dict[int, int] = {}
        self._started_s = 0.0
        self._num_started = 0

    def start_s(self, size: int) -> float:
        """Return how long it will take to have so many members, in seconds."""
        each_s = self._started_s / max(1, self._num_started)
        return each_s * max(0, size - len(self._steps))

    def steps_in_a_turn(self, size: int) -> float:
        """Let so many members train up to their next measurement; return their steps per second."""
        while len(self._steps) < size:
            number, begun = next(self._numbers), time.monotonic()
            self._pack.start(number, next(self._configs), None)
            self._steps[number] = 0
            self._started_s += time.monotonic() - begun
            self._num_started += 1
        numbers = [*self._steps][:size]
        begun = time.monotonic()
        found = self._pack.advance(numbers)
        elapsed_s = time.monotonic() - begun
        return sum(self._steps_of(number, found[number]) for number in numbers) / elapsed_s

    def _steps_of(self, number: int, advance: Advance) -> int:
        """Return the steps of a member; one that has ended makes room for another."""
        before = self._steps.pop(number)
        if advance.measurement is None:
            self._pack.close(number)
            raise SearchError(f"pack: a trial failed while packs were measured: {advance.error}")
        if advance.measurement.final:
            self._pack.close(number)
        else:
            self._steps[number] = advance.measurement.step
        return advance.measurement.step - before


def measured_rates(
    trial: PackableTrial, space: Space, *, most: int, reserve: Mapping[str, Any] | None
) -> PackRates:
    """Measure packs where trials would run.

    Args:
        trial: runs configurations.
        space: the space of the search.
        most: the largest number of trials of a pack.
        reserve: options of an actor, such as `num_cpus`; None measures in this process.
    """
    configs = [*itertools.islice(space.probes(), _MOST_CONFIGS)]
    if reserve is None:
        return pack_rates(trial, configs, most=most, budget_s=_BUDGET_S)
    import ray

    actor: Any = ray.remote(_RateActor).options(**reserve, max_restarts=0)
    handle = actor.remote(reserve["num_cpus"], reserve["num_gpus"])
    try:
        found: PackRates = ray.get(handle.rates.remote(trial, configs, most))
        return found
    finally:
        ray.kill(handle)


class _RateActor:
    """Measures packs in a process of its own."""

    def __init__(self, cpus: float, gpus: float) -> None:
        use_resources(cpus, gpus)

    def rates(self, trial: PackableTrial, configs: Sequence[Config], most: int) -> PackRates:
        return pack_rates(trial, configs, most=most, budget_s=_BUDGET_S)
