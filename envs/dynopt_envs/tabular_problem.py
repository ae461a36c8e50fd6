"""The finite Markov decision process on the table of trained networks, and its exact optimum.

A state is a row of the table together with the start, λ and the number of decisions so far. All
states that can be reached are listed once, ordered by that number, and every decision leads to the
next larger one. So one pass from the last states to the first computes each state's optimal value

    V(s) = max over legal actions a of  reward(s, a) + V(next(s, a)),

with V = 0 once the episode is over. Transitions are certain, only the start and λ are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynopt_envs.network_table import (
    COST_COLUMNS,
    EDITS,
    LayerWidths,
    NetworkFigures,
    network_table,
)
from dynopt_ray.arrays import BoolArray, FloatArray, IntArray
from dynopt_ray.errors import DataError, SpecError, UnknownNameError
from dynopt_ray.policies import ActionMask, Observation, Policy, utility

ACTIONS = ("keep", "grow", "shrink", "stop")
KEEP, GROW, SHRINK, STOP = range(4)

TABULAR_FEATURES = (
    "width_1",  # log2 of the layer's width over that of the widest layer of the table
    "width_2",
    "start_1",  # the same for the start
    "start_2",
    "cursor",  # 0 for the first hidden layer, 1 for the second
    *(f"edit_{edit}" for edit in EDITS),  # 1 for the latest edit
    "age",  # stretches of training since then, as a fraction of the most in the table
    "metric",  # smooth metric on validation data
    "cost",  # log2 of the cost over that at the start
    "cost_weight",  # λ
    "steps_left",  # fraction of the episode's decisions that remain
)
"""The names of the features, in order."""

_LARGEST_HORIZON = 64


@dataclass(frozen=True)
class TabularConfig:
    """The configuration of episodes on the table.

    Attributes:
        starts: the widths that episodes start from, drawn uniformly.
        cost_weights: the values of λ, drawn uniformly.
        cost: the cost that utility charges for.
        max_growth: the largest width of a layer, as a multiple of its width at the start, >= 1.
        horizon: the largest number of decisions of an episode, up to 64.

    Raises:
        SpecError: a start is not in the table.
        UnknownNameError: the table does not have this cost.
        ValueError: a number is out of its range.
    """

    starts: Sequence[LayerWidths] = ((4, 4), (16, 16), (64, 16), (64, 64))
    cost_weights: Sequence[float] = (0.1, 0.3, 0.6)
    cost: str = "flops"
    max_growth: float = 2.0
    horizon: int = 6

    def __post_init__(self) -> None:
        for name in ("starts", "cost_weights"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not len(value):
                raise SpecError(f"{name} is {value!r:.100}; give a list of at least one value")
        known = network_table().widths
        starts = tuple(tuple(start) if _is_list(start) else start for start in self.starts)
        for start in starts:
            if not (
                isinstance(start, tuple)
                and len(start) == 2
                and all(width in known for width in start)
            ):
                raise SpecError(
                    f"starts has {start!r:.100}; a start is two widths, each of "
                    f"{', '.join(map(str, known))}"
                )
        for weight in self.cost_weights:
            number = isinstance(weight, int | float)
            if not (number and math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"cost_weights has {weight!r:.100}; each must be a finite number of at least 0"
                )
        for name, values in (("starts", starts), ("cost_weights", self.cost_weights)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; give each value once")
        if self.cost not in COST_COLUMNS:
            raise UnknownNameError("cost", str(self.cost), COST_COLUMNS)
        if not (isinstance(self.max_growth, int | float) and self.max_growth >= 1):
            raise ValueError(f"max_growth is {self.max_growth!r:.60}; it must be at least 1")
        if type(self.horizon) is not int or not 1 <= self.horizon <= _LARGEST_HORIZON:
            raise ValueError(
                f"horizon is {self.horizon!r:.60}; it must be a whole number from 1 to "
                f"{_LARGEST_HORIZON}"
            )
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "cost_weights", tuple(self.cost_weights))


class TabularState(NamedTuple):
    """A state of the decision process.

    Attributes:
        start: the widths at the start.
        cost_weight: λ.
        num_decisions: number of decisions so far.
        widths: the present widths.
        edit: the latest edit, of `EDITS`.
        age: stretches of training since then; it stays at the largest age in the table.
        over: whether the episode is over.
        stopped: whether it was ended by stop, which does not train.
    """

    start: LayerWidths
    cost_weight: float
    num_decisions: int
    widths: LayerWidths
    edit: str = "none"
    age: int = 0
    over: bool = False
    stopped: bool = False

    @property
    def cursor(self) -> int:
        """The hidden layer that the next action changes: the two take turns."""
        return self.num_decisions % 2

    @property
    def figures(self) -> NetworkFigures:
        """The row of the table."""
        return network_table().rows[self.widths, self.edit, self.age]


class TabularProblem:
    """The decision process, listed in full.

    Args:
        config: the configuration of its episodes.

    Attributes:
        config: the same.
        states: all states that can be reached, in the order of `num_decisions`; the first
            `num_initial` are those that episodes start from.
        num_initial: number of initial states, which are equally likely.
        observations: (S, features) of each state.
        action_masks: (S, actions) of each state, 1 if an action is legal, else 0.
        next_states: (S, actions), −1 if illegal or the episode is over.
        over: (S,) whether the episode is over.
        rewards: (S, actions), the change of smooth utility; 0 if illegal.
        values: (S,) the optimal sum of rewards from each state on.
        best_actions: (S,) an action that reaches it; of equally good ones the first.

    Example:
        >>> problem = TabularProblem(TabularConfig(horizon=2))
        >>> problem.policy_return(problem.optimal_policy()) == problem.optimal_return
        True
    """

    def __init__(self, config: TabularConfig) -> None:
        self.config = config
        self.states, self.next_states, self.num_initial = self._listed()
        self.action_masks: ActionMask = (self.next_states >= 0).astype(np.int8)
        # An episode that is over is not continued, but masks must allow an action.
        self.action_masks[[state.over for state in self.states], STOP] = 1
        self.observations: Observation = np.stack([self._observed(s) for s in self.states])
        smooth = np.array([self.smooth_utility(state) for state in self.states])
        self.rewards: FloatArray = np.where(
            self.next_states >= 0, smooth[self.next_states] - smooth[:, None], 0.0
        )
        self.over: BoolArray = np.array([state.over for state in self.states])
        self.values, self.best_actions = self._solved()

    @property
    def optimal_return(self) -> float:
        """The largest mean sum of rewards of an episode that any policy can reach."""
        return float(self.values[: self.num_initial].mean())

    def optimal_policy(self) -> "TabularPolicy":
        """Return a policy that reaches `optimal_return`."""
        return TabularPolicy(self)

    def policy_return(self, policy: Policy) -> float:
        """Return the mean sum of rewards of a policy, in one episode from each initial state.

        This is exact unless the policy itself is random.

        Raises:
            DataError: the policy takes an illegal action.
        """
        total = 0.0
        for first in range(self.num_initial):
            state = first
            while not self.states[state].over:
                action = policy.act(self.observations[state], self.action_masks[state])
                if not (0 <= action < len(ACTIONS) and self.action_masks[state, action]):
                    raise DataError(f"the policy takes illegal action {action} in state {state}")
                total += float(self.rewards[state, action])
                state = int(self.next_states[state, action])
        return total / self.num_initial

    def cell_edges(self) -> dict[int, tuple[float, ...]]:
        """Return edges for `QTable` with which each state has a cell of its own."""
        edges = {}
        for index, values in enumerate(self.observations.T.astype(np.float64)):
            if TABULAR_FEATURES[index] in ("metric", "cost"):
                continue  # they follow from the others
            levels = np.unique(values)
            if len(levels) > 1:
                edges[index] = tuple(((levels[1:] + levels[:-1]) / 2).tolist())
        return edges

    def relative_cost(self, state: TabularState) -> float:
        """Return the cost over that at the start."""
        start = network_table().rows[state.start, "none", 0]
        cost = self.config.cost
        return float(getattr(state.figures, cost) / getattr(start, cost))

    def smooth_utility(self, state: TabularState) -> float:
        """Return the smooth utility, whose changes are the rewards."""
        return utility(state.figures.smooth, self.relative_cost(state), state.cost_weight)

    def _listed(self) -> tuple[list[TabularState], IntArray, int]:
        """List all states that can be reached, with the state after each action."""
        states = [
            TabularState(start, weight, 0, start)
            for start in self.config.starts
            for weight in self.config.cost_weights
        ]
        num_initial = len(states)
        places = {state: place for place, state in enumerate(states)}
        rows: list[list[int]] = []
        while len(rows) < len(states):  # the list grows meanwhile
            row = []
            for action in range(len(ACTIONS)):
                after = next_state(states[len(rows)], action, self.config)
                if after is not None and after not in places:
                    places[after] = len(states)
                    states.append(after)
                row.append(-1 if after is None else places[after])
            rows.append(row)
        return states, np.array(rows, dtype=np.int64), num_initial

    def _observed(self, state: TabularState) -> NDArray[np.float32]:
        table = network_table()
        largest = math.log2(table.widths[-1])
        return np.array(
            [
                *(math.log2(width) / largest for width in (*state.widths, *state.start)),
                state.cursor,
                *(state.edit == edit for edit in EDITS),
                state.age / table.largest_age,
                state.figures.smooth,
                math.log2(self.relative_cost(state)),
                state.cost_weight,
                1 - state.num_decisions / self.config.horizon,
            ],
            dtype=np.float32,
        )

    def _solved(self) -> tuple[FloatArray, IntArray]:
        """Return each state's optimal value and action, by dynamic programming."""
        values: FloatArray = np.zeros(len(self.states))
        actions: IntArray = np.full(len(self.states), STOP)
        for state in reversed(range(len(self.states))):
            after = self.next_states[state]
            if self.states[state].over:
                continue
            reached = np.where(after >= 0, self.rewards[state] + values[after], -np.inf)
            actions[state] = reached.argmax()
            values[state] = reached.max()
        return values, actions


class TabularPolicy:
    """An optimal policy: looks up the state of an observation, and takes its best action.

    Args:
        problem: the decision process that it solves.
    """

    def __init__(self, problem: TabularProblem) -> None:
        shown = problem.observations
        self._actions = {
            shown[state].tobytes(): int(action)
            for state, action in enumerate(problem.best_actions)
            if not problem.states[state].over
        }

    def act(self, observation: Observation, action_mask: ActionMask) -> int:  # noqa: ARG002
        """Return the best action.

        Raises:
            DataError: the observation belongs to no state of the decision process.
        """
        action = self._actions.get(np.asarray(observation, np.float32).tobytes())
        if action is None:
            raise DataError("the observation is of no state of this policy's decision process")
        return action


def next_state(state: TabularState, action: int, config: TabularConfig) -> TabularState | None:
    """Return the state after an action, or None if the action is illegal."""
    if state.over:
        return None
    table = network_table()
    num_decisions = state.num_decisions + 1
    over = action == STOP or num_decisions >= config.horizon
    after = state._replace(num_decisions=num_decisions, over=over, stopped=action == STOP)
    if action == STOP:
        return after
    if action == KEEP:
        return after._replace(age=min(state.age + 1, table.largest_age))
    widths = list(state.widths)
    width = widths[state.cursor]
    widths[state.cursor] = 2 * width if action == GROW else width // 2
    if action == GROW and 2 * width > config.max_growth * state.start[state.cursor]:
        return None
    edit = f"{ACTIONS[action]}_{state.cursor + 1}"
    after = after._replace(widths=(widths[0], widths[1]), edit=edit, age=1)
    return after if (after.widths, edit, 1) in table.rows else None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
