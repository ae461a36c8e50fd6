"""Tabular Q-learning on discretised observations.

A few features are cut into bins. Each combination of bins is a cell, and the table holds one
Q-value per cell and action: an estimate of the discounted return if that action is taken in that
cell and the best legal actions follow. After each environment step, one Q-value moves towards

    reward + γ · (largest Q-value of a legal action in the next cell),

or towards the reward alone if the episode terminated. The rate 1 / visits^0.7 averages over random
rewards and transitions: its sum over all visits diverges, so initial values are forgotten, and the
sum of its squares converges, so noise vanishes.

The Q-values converge to the optimal ones under two conditions. Every legal action must be tried
again and again, which random actions ensure. And the distribution of reward and next cell must
depend on cell and action alone. Real observations meet the second condition only approximately:
a cell merges different networks, and its Q-values average over them.

With the same seed, training gives the same table.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.errors import CheckpointError, described
from dynopt_ray.policies.actions import ActionMask
from dynopt_ray.policies.evaluation import ENVIRONMENT
from dynopt_ray.policies.observation import FEATURES, Observation
from dynopt_ray.storage import DAMAGE_ERRORS, read_state, write_state

_KIND = "Q-table"

Cell = tuple[int, ...]
"""The bin of each discretised feature."""

DEFAULT_EDGES: dict[int, tuple[float, ...]] = {
    FEATURES.index("depth"): (0.5,),
    FEATURES.index("cost_nonzero"): (0.05, 0.1, 0.2, 0.4, 0.7),
    FEATURES.index("metric"): (0.85, 0.9, 0.93),
    FEATURES.index("cost_weight"): (0.2, 0.45),
    FEATURES.index("steps_left"): (0.3, 0.6),
}
"""Edges for observations of the architecture environment; they make 432 cells."""


class QTable:
    """A table of Q-values, one row per cell.

    Args:
        edges: feature index -> increasing edges between its bins. Other features are ignored.
        num_actions: number of actions per cell.

    Raises:
        ValueError: there are no edges, edges do not increase, or `num_actions` is below 1.

    Attributes:
        values: cell -> Q-values (actions,). Cells that were never visited are absent and count as
            zeros.
        visits: cell -> number of updates of each Q-value, (actions,).

    Example:
        >>> import numpy as np
        >>> table = QTable({0: [0.5]}, num_actions=2)
        >>> here, both = np.zeros(1, np.float32), np.ones(2, np.int8)
        >>> table.learn(here, 1, 1.0, here, both, discount=0.9, terminated=True)
        >>> table.act(here, both)
        1
    """

    def __init__(self, edges: Mapping[int, Sequence[float]], num_actions: int) -> None:
        self.edges = {int(index): tuple(map(float, cuts)) for index, cuts in edges.items()}
        if not self.edges:
            raise ValueError(
                "edges is empty, so all observations look the same; give edges of a feature"
            )
        for index, cuts in self.edges.items():
            if list(cuts) != sorted(set(cuts)):
                raise ValueError(f"edges of feature {index} are {cuts}; they must increase")
        if num_actions < 1:
            raise ValueError(f"num_actions is {num_actions}; it must be at least 1")
        self.num_actions = num_actions
        self.values: dict[Cell, NDArray[np.float64]] = {}
        self.visits: dict[Cell, NDArray[np.int64]] = {}

    def cell(self, observation: Observation) -> Cell:
        """Return the cell of an observation."""
        return tuple(
            int(np.searchsorted(cuts, observation[index], side="right"))
            for index, cuts in self.edges.items()
        )

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return the legal action with the largest Q-value; of equal values the first."""
        values = self.values.get(self.cell(observation), np.zeros(self.num_actions))
        return int(np.where(action_mask > 0, values, -np.inf).argmax())

    def learn(
        self,
        observation: Observation,
        action: int,
        reward: float,
        next_observation: Observation,
        next_mask: ActionMask,
        *,
        discount: float,
        terminated: bool,
    ) -> None:
        """Update one Q-value from one transition, at the rate 1 / visits^0.7.

        Args:
            observation: the observation before the action.
            action: the action taken.
            reward: the reward received.
            next_observation: the observation after the action.
            next_mask: the action mask after the action.
            discount: discount factor γ.
            terminated: whether the action ended the episode, so that no reward can follow.

        References:
            Watkins and Dayan 1992; the rate as in Even-Dar and Mansour 2003, ω = 0.7.
        """
        cell = self.cell(observation)
        values = self.values.setdefault(cell, np.zeros(self.num_actions))
        visits = self.visits.setdefault(cell, np.zeros(self.num_actions, dtype=np.int64))
        future = 0.0
        if not terminated:
            after = self.values.get(self.cell(next_observation), np.zeros(self.num_actions))
            future = float(after[next_mask > 0].max())
        visits[action] += 1
        rate = visits[action] ** -0.7
        values[action] += rate * (reward + discount * future - values[action])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to one file, completely or not at all.

        Raises:
            CheckpointError: the file could not be written. Any previous file is still there.
        """
        cells = sorted(self.values)
        state = {
            "edges": [[index, list(cuts)] for index, cuts in self.edges.items()],
            "num_actions": self.num_actions,
            "cells": [list(cell) for cell in cells],
            "values": torch.tensor(np.array([self.values[cell] for cell in cells]), device="cpu"),
            "visits": torch.tensor(np.array([self.visits[cell] for cell in cells]), device="cpu"),
        }
        write_state(path, state, kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "QTable":
        """Read a table that `save` wrote.

        Raises:
            CheckpointError: the file is missing, truncated, altered, or not a Q-table.
        """
        state = read_state(path, kind=_KIND)
        try:
            if state.keys() != {"edges", "num_actions", "cells", "values", "visits"}:
                raise ValueError(f"it has the keys {sorted(state)!s:.200}")
            _check_edges(state["edges"], state["num_actions"])
            table = cls(dict(state["edges"]), state["num_actions"])
            _check_cells(table, state["cells"], state["values"], state["visits"])
            for cell, values, visits in zip(
                state["cells"], state["values"].numpy(), state["visits"].numpy(), strict=True
            ):
                table.values[tuple(cell)] = values
                table.visits[tuple(cell)] = visits
        except DAMAGE_ERRORS as error:
            raise CheckpointError(
                f"{path} holds a Q-table that this release cannot read: {described(error):.400}"
            ) from error
        return table


def _check_edges(edges: list[Any], num_actions: Any) -> None:
    """Raise a ValueError unless saved edges are finite numbers of features, each named once."""
    if type(num_actions) is not int:
        raise ValueError(f"num_actions is {num_actions!r:.60}")
    indices = [index for index, _ in edges]
    if not all(type(index) is int and index >= 0 for index in indices):
        raise ValueError("edges belong to features that are no whole numbers")
    if len(set(indices)) != len(indices):
        raise ValueError("edges belong to a feature twice")
    cuts = [cut for _, cuts in edges for cut in cuts]
    if not all(isinstance(cut, int | float) and math.isfinite(cut) for cut in cuts):
        raise ValueError("edges are not finite numbers")


def _check_cells(table: QTable, cells: list[Any], values: Tensor, visits: Tensor) -> None:
    """Raise a ValueError unless saved cells, Q-values and counts belong to a table."""
    most = [len(cuts) for cuts in table.edges.values()]
    for cell in cells:
        bins = zip(cell, most, strict=True)
        if not all(type(bin_) is int and 0 <= bin_ <= last for bin_, last in bins):
            raise ValueError(f"{cell!r:.100} is no cell of the table")
    if len({tuple(cell) for cell in cells}) != len(cells):
        raise ValueError("a cell stands twice")
    shape = (len(cells), table.num_actions) if cells else (0,)
    for tensor, dtype in ((values, torch.float64), (visits, torch.int64)):
        empty = not cells and tensor.numel() == 0
        if not empty and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
            raise ValueError(f"values or visits have shape {tuple(tensor.shape)!s:.60}")
    if not bool(values.isfinite().all()) or bool((visits < 0).any()):
        raise ValueError("a Q-value is not finite, or a number of visits is below 0")


def train_qtable(
    env_id: str = ENVIRONMENT,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    num_steps: int,
    edges: Mapping[int, Sequence[float]] | None = None,
    num_envs: int = 32,
    discount: float = 0.99,
    epsilon: float = 0.1,
    seed: int = 0,
) -> QTable:
    """Learn a Q-table with epsilon-greedy exploration.

    Args:
        env_id: a Gymnasium id with `vector_entry_point`, whose observations are
            `Dict(observations, action_mask)`.
        env_kwargs: keyword arguments of the environment.
        num_steps: total number of environment steps, at least 1.
        edges: see `QTable`. Default: `DEFAULT_EDGES`.
        num_envs: number of environments that advance together.
        discount: discount factor γ.
        epsilon: fraction of random actions in the second half of training. In the first half it
            decreases linearly from 1 to this.
        seed: seed of the environments and of exploration.

    Raises:
        ValueError: `num_steps` is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    env = gymnasium.make_vec(
        env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **(env_kwargs or {})
    )
    actions: Any = env.single_action_space
    table = QTable(DEFAULT_EDGES if edges is None else edges, int(actions.n))
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    over = np.zeros(num_envs, dtype=np.bool_)
    taken = 0
    while taken < num_steps:
        fraction = random_fraction(taken, num_steps, epsilon=epsilon)
        chosen = _explore(table, observation, fraction, generator)
        after, rewards, terminated, truncated, _ = env.step(chosen)
        for i in np.flatnonzero(~over):
            table.learn(
                observation["observations"][i],
                int(chosen[i]),
                float(rewards[i]),
                after["observations"][i],
                after["action_mask"][i],
                discount=discount,
                terminated=bool(terminated[i]),
            )
        taken += int((~over).sum())
        observation, over = after, terminated | truncated
    env.close()
    return table


def random_fraction(taken: int, num_steps: int, *, epsilon: float) -> float:
    """Return the fraction of random actions after `taken` of `num_steps` environment steps."""
    return max(epsilon, 1 - 2 * taken / num_steps * (1 - epsilon))


def _explore(
    table: QTable,
    observation: Mapping[str, NDArray[Any]],
    random_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Choose each environment's best action or, for a random fraction, any legal one."""
    chosen = []
    for features, mask in zip(observation["observations"], observation["action_mask"], strict=True):
        if generator.random() < random_fraction:
            chosen.append(int(generator.choice(np.flatnonzero(mask))))
        else:
            chosen.append(table.act(features, mask))
    return np.array(chosen)
