"""Make the plan of a round of growth: which groups grow, and how new units start."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from typing import Literal, get_args

import torch

from dynopt_ray.structure import Edit, Graph, Grow, Shrink
from dynopt_ray.tasks import Task
from dynopt_ray.training.growing.gain import Ranked, rank_candidates
from dynopt_ray.training.growing.limits import Growth
from dynopt_ray.training.loop import SCORE_ROWS, sample_batches

GrowthCriterion = Literal["even", "gain"] | Callable[[Graph, Task], Mapping[str, float]]
"""Where the network grows: a name, or a rule that maps group names to the worth of a new unit."""

CRITERIA = ("even", "gain")

GrowthInit = Literal["fresh", "split", "gradmax"]
"""How new units start."""

INITS: tuple[GrowthInit, ...] = get_args(GrowthInit)

_NUM_DRAWN = 3
# Number of units that are drawn to estimate the worth of a new unit of a group.
_NUM_SAMPLED = 16


@dataclass(frozen=True, eq=False)
class Planner:
    """Makes the plan of each round.

    Attributes:
        growth: the limits of growth.
        task: what the network learns.
        criterion: where the network grows.
        init: how new units start.
        generator: draws seeds of new units, and the samples on which units are judged.
    """

    growth: Growth
    task: Task
    criterion: GrowthCriterion
    init: GrowthInit
    generator: torch.Generator

    def plan(self, share: float) -> tuple[list[Edit], int | None]:
        """Return the plan of a round and the seed of its new units.

        A seed of None leaves the draw to torch's own seed.

        Args:
            share: fraction of the way to the target, in (0, 1].
        """
        graph = self.growth.graph
        if self.criterion == "even":
            wanted = self.growth.corrected(partial(self.growth.evenly, share), share)
        else:
            # Estimate the worth once, even if several choices have to be measured.
            choose = partial(self.growth.by_worth, share, cache(self._worth))
            wanted = self.growth.corrected(choose, share)
        added = {n: width - graph[n].width for n, width in wanted.items() if width > graph[n].width}
        if self.init != "gradmax":
            return [Grow(name, units=units, init=self.init) for name, units in added.items()], None
        return self._best_drawn(added) if added else ([], None)

    def _best_drawn(self, added: Mapping[str, int]) -> tuple[list[Edit], int]:
        """Return a plan that draws more units than wanted and keeps the best, and its seed."""
        drawn = {name: _NUM_DRAWN * units for name, units in added.items()}
        ranked, draw = self._ranked(drawn)
        plan: list[Edit] = [Grow(name, units=units) for name, units in drawn.items()]
        for name, units in added.items():
            width, best = self.growth.graph[name].width, ranked[name].order[:units]
            plan.append(Shrink(name, keep=[*range(width), *sorted((width + best).tolist())]))
        return plan, draw

    def _worth(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return the worth of the next unit of each group."""
        graph = self.growth.graph
        if callable(self.criterion):
            given = self.criterion(graph, self.task)
            if not isinstance(given, Mapping):
                raise ValueError(
                    f"grow: the criterion gives {given!r:.60}; it must give a mapping: group name "
                    "-> worth of a new unit"
                )
            return {name: _checked(name, given.get(name)) for name in names}
        steps = {name: graph[name].step for name in names}
        drawn = {name: math.ceil(_NUM_SAMPLED / step) * step for name, step in steps.items()}
        ranked, _ = self._ranked(drawn)
        return {name: float(one.gains.mean()) for name, one in ranked.items()}

    def _ranked(self, drawn: Mapping[str, int]) -> tuple[dict[str, Ranked], int]:
        """Return ranked candidates and the seed that they were drawn from."""
        draw = int(torch.randint(2**31, (), generator=self.generator, device="cpu"))
        batches = sample_batches(self.task, SCORE_ROWS, self.generator)
        graph = self.growth.graph
        return rank_candidates(graph, drawn, batches, self.task.loss, seed=draw), draw


def _checked(name: str, worth: object) -> float:
    if not isinstance(worth, Real) or not 0 <= float(worth) < math.inf:
        raise ValueError(
            f"grow: the criterion gives {worth!r} for group {name!r}; it must give each group that "
            "can grow a finite number >= 0"
        )
    return float(worth)
