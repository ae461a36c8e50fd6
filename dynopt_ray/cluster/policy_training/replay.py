"""Prioritized replay of n-step transitions, stored in plain arrays.

A transition describes k consecutive steps of an episode: the first observation s and action a, the
discounted sum of the rewards R = Σ γ^i r_i for i = 0 … k − 1, and the observation s' after them.
From it, the learner computes the target R + γ^k V(s'), where V is its estimate of the best value,
or just R if the episode terminated at s' (but not if it was only cut off there). Every step starts
one transition. Its length k is n, or less if the episode ends earlier. Short transitions give right
targets too, because each transition stores its k.

The short transitions at the end of an episode are the reason for this file. RLlib's own episode
buffer never returns a transition that starts less than n steps before the end. With n > 1, the
action `stop`, which is always the last one of its episode, would then never be learned.

Transitions are drawn in proportion to p^α. The priority p is the absolute TD error that the
transition had when it was last used, plus a small constant. So badly predicted transitions are used
more often, and all of them sometimes. A new transition gets the largest priority so far. Drawing by
priority biases the mean loss. To correct this, transition j gets the weight (N P(j))^−β, where N is
the number of stored transitions and P(j) is the probability of drawing j. With β = 1, the
correction is complete. All weights of a batch are divided by their maximum, so that they only ever
make gradients smaller.

Arrays can be saved and restored exactly, without pickle.

References:
    Schaul et al. 2016, "Prioritized Experience Replay", proportional variant.
"""

import math
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST_PRIORITY = 1e-3
_COLUMNS = (
    "observations",
    "masks",
    "actions",
    "rewards",
    "next_observations",
    "next_masks",
    "terminated",
    "num_steps",
    "priorities",
)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one environment.

    Attributes:
        observation: the features before the step.
        mask: the legal actions before the step, 1 if legal.
        action: index of the action taken.
        reward: the reward received.
    """

    observation: NDArray[np.float32]
    mask: NDArray[np.int8]
    action: int
    reward: float


class PrioritizedReplay:
    """A ring buffer of transitions, which are drawn by their latest TD errors.

    Args:
        capacity: maximum number of transitions. New ones replace the oldest.
        num_features: length of an observation.
        num_actions: length of a mask.
        n_step: number of rewards summed per transition; fewer at the end of an episode.
        discount: discount γ per step.
        alpha: exponent of the priorities; 0 draws uniformly.
        beta: exponent of the weights, which correct the bias of drawing by priority; 1 corrects
            it completely, 0 not at all.
        seed: seed of the draws.
    """

    def __init__(
        self,
        *,
        capacity: int,
        num_features: int,
        num_actions: int,
        n_step: int,
        discount: float,
        alpha: float,
        beta: float,
        seed: int,
    ) -> None:
        self._n_step, self._discount = n_step, discount
        self._alpha, self._beta = alpha, beta
        self._size = self._next = 0
        self._largest = 1.0
        self._generator = np.random.default_rng(seed)
        self._pending: dict[Hashable, deque[Step]] = defaultdict(deque)
        self._data: dict[str, NDArray[Any]] = {
            "observations": np.zeros((capacity, num_features), np.float32),
            "masks": np.zeros((capacity, num_actions), np.int8),
            "actions": np.zeros(capacity, np.int64),
            "rewards": np.zeros(capacity, np.float32),
            "next_observations": np.zeros((capacity, num_features), np.float32),
            "next_masks": np.zeros((capacity, num_actions), np.int8),
            "terminated": np.zeros(capacity, np.bool_),
            "num_steps": np.zeros(capacity, np.int64),
            "priorities": np.zeros(capacity, np.float64),
        }

    def __len__(self) -> int:
        return self._size

    def add(
        self,
        episode: Hashable,
        step: Step,
        next_observation: NDArray[np.float32],
        next_mask: NDArray[np.int8],
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add one step of an episode, and store the transitions that it completes.

        Args:
            episode: identifies the episode. Its steps must be added in order; steps of other
                episodes may come in between.
            step: the step.
            next_observation: the features after the step.
            next_mask: the legal actions after the step.
            terminated: whether the episode ended, so that no further reward is possible.
            truncated: whether the episode was cut off before it ended.
        """
        waiting = self._pending[episode]
        waiting.append(step)
        over = terminated or truncated
        while waiting and (over or len(waiting) == self._n_step):
            rewards = sum(s.reward * self._discount**i for i, s in enumerate(waiting))
            self._put(waiting, rewards, next_observation, next_mask, terminated)
            waiting.popleft()
        if over:
            del self._pending[episode]

    def sample(self, count: int) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Draw transitions with replacement.

        Returns:
            The rows of the transitions, for `update`; and their columns, which include `weights`.
            The weights correct the bias of the draw and are at most 1.

        Raises:
            ValueError: the replay holds no transition yet.
        """
        if not self._size:
            raise ValueError("the replay holds no transition yet; add some before sampling")
        mass = self._data["priorities"][: self._size] ** self._alpha
        edges = np.cumsum(mass)
        draws = self._generator.random(count) * edges[-1]
        rows = np.minimum(np.searchsorted(edges, draws, side="right"), self._size - 1)
        weights = (mass[rows] / edges[-1] * self._size) ** -self._beta
        columns = {name: self._data[name][rows] for name in _COLUMNS if name != "priorities"}
        return rows, {**columns, "weights": (weights / weights.max()).astype(np.float32)}

    def update(self, rows: NDArray[np.int64], errors: NDArray[np.floating[Any]]) -> None:
        """Set the priorities of transitions to their absolute TD errors (plus 0.001)."""
        priorities = np.abs(errors) + _SMALLEST_PRIORITY
        self._data["priorities"][rows] = priorities
        self._largest = max(self._largest, float(priorities.max()))

    def forget_unfinished(self) -> None:
        """Drop steps that are not in a transition yet, because their episodes will not continue."""
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return everything except unfinished episodes, as numbers and arrays."""
        return {
            "data": {name: values[: self._size].copy() for name, values in self._data.items()},
            "next": self._next,
            "largest": self._largest,
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            ValueError: the state does not fit the capacity or the columns of this replay.
        """
        data, row, largest = state["data"], state["next"], state["largest"]
        size = len(data["actions"])
        capacity = len(self._data["actions"])
        fits = all(data[n].shape[1:] == self._data[n].shape[1:] for n in _COLUMNS)
        if not fits or size > capacity:
            raise ValueError(
                f"a replay of {size} transitions with {data['observations'].shape[1]} features "
                f"does not fit one of capacity {capacity} with "
                f"{self._data['observations'].shape[1]} features; make it with the same settings"
            )
        is_whole = data.keys() == set(_COLUMNS) and all(len(data[n]) == size for n in _COLUMNS)
        if not is_whole or any(data[n].dtype != self._data[n].dtype for n in _COLUMNS):
            raise ValueError("the columns of the replay have other names, lengths or types")
        if type(row) is not int or not 0 <= row < capacity or not 0 < largest < math.inf:
            raise ValueError(f"the replay goes on at row {row!r:.60} with {largest!r:.60}")
        if not np.all((data["priorities"] > 0) & np.isfinite(data["priorities"])):
            raise ValueError("the replay has priorities that are not positive numbers")
        num_actions = self._data["masks"].shape[1]
        actions, lengths = data["actions"], data["num_steps"]
        if not np.all((actions >= 0) & (actions < num_actions)) or not np.all(lengths >= 1):
            raise ValueError("the replay has actions or lengths that are out of range")
        self._generator.bit_generator.state = state["generator"]  # it refuses other states
        for name in _COLUMNS:
            self._data[name][:size] = data[name]
        self._size, self._next, self._largest = size, row, largest
        self._pending.clear()

    def _put(
        self,
        waiting: deque[Step],
        rewards: float,
        next_observation: NDArray[np.float32],
        next_mask: NDArray[np.int8],
        terminated: bool,
    ) -> None:
        row, first = self._next, waiting[0]
        values = (
            first.observation,
            first.mask,
            first.action,
            rewards,
            next_observation,
            next_mask,
            terminated,
            len(waiting),
            self._largest,
        )
        for name, value in zip(_COLUMNS, values, strict=True):
            self._data[name][row] = value
        capacity = len(self._data["actions"])
        self._next = (row + 1) % capacity
        self._size = min(self._size + 1, capacity)
