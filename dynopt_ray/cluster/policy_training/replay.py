"""Prioritized replay of n-step transitions, kept as plain arrays.

RLlib's own episode buffer never returns a transition that starts less than n steps before an
episode's end. Here those are cut at the end instead: otherwise `stop`, which is always the last
action of its episode, would never be learned with n > 1. Arrays also save and restore exactly,
without pickle.

References:
    Schaul et al. 2016, "Prioritized Experience Replay", proportional variant.
"""

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
        observation: features before it.
        mask: legal actions before it.
        action: what was done.
        reward: what it paid.
    """

    observation: NDArray[np.float32]
    mask: NDArray[np.int8]
    action: int
    reward: float


class PrioritizedReplay:
    """A ring of transitions, drawn in proportion to their latest TD error.

    Args:
        capacity: transitions kept; the oldest go first.
        num_features: length of an observation.
        num_actions: length of a mask.
        n_step: rewards summed per transition; fewer at an episode's end.
        discount: γ between steps.
        alpha: how much priorities count; 0 draws uniformly.
        beta: how much the bias of drawing by priority is weighed out; 1 is wholly.
        seed: of the draws.
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
        """Add one step of an episode; what n steps since complete becomes a transition.

        Args:
            episode: which episode it belongs to; its steps come in order.
            step: the step.
            next_observation: features after it.
            next_mask: legal actions after it.
            terminated: whether nothing can be earned any more.
            truncated: whether the episode was cut off.
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
        """Draw transitions.

        Returns:
            Their rows, for `update`; and their columns: those of a transition and `weights`,
            which weigh out the bias of the draw, at most 1.

        Raises:
            ValueError: nothing has been added yet.
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
        """Give transitions new priorities: their absolute TD errors."""
        priorities = np.abs(errors) + _SMALLEST_PRIORITY
        self._data["priorities"][rows] = priorities
        self._largest = max(self._largest, float(priorities.max()))

    def forget_unfinished(self) -> None:
        """Drop steps that have not become transitions: their episodes will not go on."""
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything but unfinished episodes: numbers and arrays."""
        return {
            "data": {name: values[: self._size].copy() for name, values in self._data.items()},
            "next": self._next,
            "largest": self._largest,
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state of `state_dict` back.

        Raises:
            ValueError: it does not fit this replay's capacity or its columns.
        """
        data = state["data"]
        size = len(data["actions"])
        capacity = len(self._data["actions"])
        fits = all(data[n].shape[1:] == self._data[n].shape[1:] for n in _COLUMNS)
        if not fits or size > capacity:
            raise ValueError(
                f"a replay of {size} transitions of {data['observations'].shape[1]} features does "
                f"not fit one of capacity {capacity} and {self._data['observations'].shape[1]}"
            )
        for name in _COLUMNS:
            self._data[name][:size] = data[name]
        self._size, self._next, self._largest = size, state["next"], state["largest"]
        self._generator.bit_generator.state = state["generator"]
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
