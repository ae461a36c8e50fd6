"""Episodes of several kinds that advance together, presented as if they were of one kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynopt_envs.episodes import Episodes
from dynopt_ray.arrays import BoolArray, FloatArray, IntArray

FIGURES = (
    "observation",
    "action_mask",
    "utility",
    "smooth_utility",
    "metric",
    "relative_cost",
    "cost_weight",
    "gradient_steps",
    "illegal",
)
"""The arrays of `Episodes` that environments show."""


class JointEpisodes:
    """Episodes of several kinds in turn: the first of each kind, then the second of each.

    Args:
        kinds: the episodes of each kind.
    """

    def __init__(self, kinds: Sequence[Episodes]) -> None:
        self._kinds = kinds
        sizes = [len(kind) for kind in kinds]
        places = [(row, kind) for kind, size in enumerate(sizes) for row in range(size)]
        order = sorted(range(len(places)), key=places.__getitem__)
        # Where each kind's episodes are among all.
        self._at = [
            np.array([n for n, i in enumerate(order) if places[i][1] == kind])
            for kind in range(len(kinds))
        ]

    def __len__(self) -> int:
        return sum(map(len, self._at))

    @property
    def has_started(self) -> bool:
        """Whether there is anything to show."""
        return all(kind.has_started for kind in self._kinds)

    def start(self, members: Sequence[int], generators: Sequence[np.random.Generator]) -> None:
        """See `Episodes.start`."""
        given = dict(zip(members, generators, strict=True))
        for kind, at in zip(self._kinds, self._at, strict=True):
            chosen = [row for row, member in enumerate(at) if int(member) in given]
            if chosen:
                kind.start(chosen, [given[int(at[row])] for row in chosen])

    def step(self, actions: IntArray, active: BoolArray) -> tuple[FloatArray, BoolArray]:
        """See `Episodes.step`."""
        rewards, over = np.zeros(len(self)), np.zeros(len(self), dtype=np.bool_)
        for kind, at in zip(self._kinds, self._at, strict=True):
            rewards[at], over[at] = kind.step(actions[at], active[at])
        return rewards, over

    def look(self, deciding: BoolArray) -> None:
        """See `Episodes.look`."""
        for kind, at in zip(self._kinds, self._at, strict=True):
            kind.look(deciding[at])

    def figure(self, name: str) -> NDArray[Any]:
        """Return one of `FIGURES` of all episodes."""
        found = [kind.figure(name) for kind in self._kinds]
        joint = np.zeros((len(self), *found[0].shape[1:]), dtype=found[0].dtype)
        for at, values in zip(self._at, found, strict=True):
            joint[at] = values
        return joint
