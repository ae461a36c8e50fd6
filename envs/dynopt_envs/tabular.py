"""`dynopt/TabularArchitecture-v0`: the structure of a network as a finite decision process."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dynopt_envs.architecture import ObservationDict
from dynopt_envs.network_table import TRAIN_STEPS
from dynopt_envs.rendering import EpisodeFrame, check_render_mode, draw_episode
from dynopt_envs.tabular_problem import (
    ACTIONS,
    STOP,
    TABULAR_FEATURES,
    TabularConfig,
    TabularProblem,
)
from dynopt_ray.arrays import BoolArray, IntArray
from dynopt_ray.errors import EditError, SpecError, did_you_mean
from dynopt_ray.policies import LIMIT, utility


class TabularArchitectureEnv(gymnasium.Env[ObservationDict, np.int64]):
    """A network whose figures come from a table, so that the best policy is known exactly.

    ## Description
    An episode starts from a trained network of two hidden layers on the handwritten digits. A
    cursor visits the two layers in turn. In each step the action changes the layer under the
    cursor, and the figures of the network after the edit and a stretch of 20 optimizer steps are
    looked up. They are means over five networks that were really trained so. The table forgets all
    edits but the latest: an edit always starts from networks that were trained for 200 steps at
    their present widths.

    ## Action space
    `Discrete(4)`: 0 keep, 1 grow (double the layer), 2 shrink (halve it) and 3 stop. Layers have
    2 to 64 units, and at most `max_growth` times those at the start. Other actions are illegal:
    they are 0 in `info["action_mask"]` and False in `action_masks()`, and raise an error.

    ## Observation space
    `Dict(observations=Box, action_mask=Box)`. The features are listed in
    `dynopt_envs.tabular_problem.TABULAR_FEATURES`. They tell all states apart.

    ## Rewards
    The change of smooth utility, as in `dynopt/Architecture-v0`.

    ## Starting state
    The widths are drawn from `starts` and λ from `cost_weights`, both uniformly. Nothing else is
    random.

    ## Episode end
    The episode terminates after `stop` or after `horizon` steps.

    ## Optimum
    `env.unwrapped.problem` is the whole decision process: `optimal_return` and `optimal_policy()`
    come from dynamic programming, `policy_return(policy)` is exact, too, and `cell_edges()` gives a
    `QTable` one cell for each state.

    ## Arguments
    The fields of `TabularConfig` by name.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.problem = TabularProblem(tabular_config(options))
        self.observation_space = tabular_observation_space()
        self.action_space = spaces.Discrete(len(ACTIONS))
        self._state: int | None = None
        self._frames: list[EpisodeFrame] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Start an episode; `options` must be empty."""
        super().reset(seed=seed)
        _check_no_options(options)
        self._state = int(self.np_random.integers(self.problem.num_initial))
        self._frames = [] if self.render_mode is None else [self._frame(self._state, None)]
        return self._seen(self._state), self._info(self._state)

    def step(self, action: np.int64) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Carry out one action.

        Raises:
            InvalidAction: the action is not a whole number.
            EditError: the action is illegal or does not exist.
            ResetNeeded: the episode is over, or none has started.
        """
        state = self._state
        if state is None or self.problem.states[state].over:
            raise ResetNeeded("the episode is over, or none has started; call reset() first")
        try:
            chosen = operator.index(action)
        except TypeError as error:
            raise InvalidAction(
                f"{action!r} is not an action; actions are 0 to {len(ACTIONS) - 1}"
            ) from error
        check_legal(np.array([chosen]), self.problem.action_masks[[state]], np.array([True]))
        self._state = after = int(self.problem.next_states[state, chosen])
        if self.render_mode is not None:
            self._frames.append(self._frame(after, ACTIONS[chosen]))
        reward = float(self.problem.rewards[state, chosen])
        over = self.problem.states[after].over
        return self._seen(after), reward, over, False, self._info(after)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, (actions,).

        Raises:
            ResetNeeded: no episode has started.
        """
        if self._state is None:
            raise ResetNeeded("no episode has started, so no action is legal; call reset() first")
        masks: NDArray[np.bool_] = self.problem.action_masks[self._state].astype(np.bool_)
        return masks

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return a picture of the network and of the episode so far; None without a render mode.

        Raises:
            ResetNeeded: no episode has started.
        """
        return None if self.render_mode is None else draw_episode(self._frames)

    def _seen(self, state: int) -> ObservationDict:
        return {
            "observations": self.problem.observations[state].copy(),
            "action_mask": self.problem.action_masks[state].copy(),
        }

    def _info(self, state: int) -> dict[str, Any]:
        return {
            name: values[0].copy() if values[0].ndim else values[0].item()
            for name, values in tabular_info(self.problem, np.array([state])).items()
        }

    def _frame(self, place: int, action: str | None) -> EpisodeFrame:
        state = self.problem.states[place]
        return EpisodeFrame(
            widths=state.widths,
            start_widths=state.start,
            cursor=state.cursor,
            action=action,
            metric=state.figures.metric,
            relative_cost=self.problem.relative_cost(state),
            utility=utility(
                state.figures.metric, self.problem.relative_cost(state), state.cost_weight
            ),
            cost_weight=state.cost_weight,
        )


class TabularArchitectureVectorEnv(VectorEnv[ObservationDict, NDArray[np.int64], NDArray[Any]]):
    """Many episodes on the table at once.

    Each environment behaves as a `TabularArchitectureEnv` with the same seed. When an episode is
    over, the next step ignores its action and starts a new episode (`AutoresetMode.NEXT_STEP`).

    Args:
        num_envs: number of environments.
        render_mode: must be None; only single environments can be rendered.
        options: fields of `TabularConfig` by name.

    Attributes:
        horizon: the largest number of steps of an episode.
        problem: the decision process.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, render_mode: None = None, **options: Any) -> None:
        self.render_mode = render_mode
        self.problem = TabularProblem(tabular_config(options))
        self.horizon = self.problem.config.horizon
        self.num_envs = num_envs
        self.single_observation_space = tabular_observation_space()
        self.single_action_space = spaces.Discrete(len(ACTIONS))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._states: IntArray | None = None
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Start all episodes; a single seed s gives environment i the seed s + i."""
        _check_no_options(options)
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        for index, own in enumerate(seeds or ()):
            if own is not None:
                self._generators[index] = seeding.np_random(own)[0]
        self._states = np.array([self._drawn(index) for index in range(self.num_envs)])
        return self._seen(self._states), self._info(self._states)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[ObservationDict, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Carry out one action in each environment; episodes that were over restart instead.

        Raises:
            InvalidAction: the actions are not one whole number per environment.
            EditError: an action is illegal or does not exist.
            ResetNeeded: no episode has started.
        """
        if self._states is None:
            raise ResetNeeded("no episode has started; call reset() first")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise InvalidAction(
                f"actions have the shape {actions.shape} and the dtype {actions.dtype}; give "
                f"{self.num_envs} whole numbers from 0 to {len(ACTIONS) - 1}"
            )
        starting = self.problem.over[self._states]
        check_legal(actions, self.problem.action_masks[self._states], ~starting)
        chosen = np.where(starting, STOP, actions)
        rewards = np.where(starting, 0.0, self.problem.rewards[self._states, chosen])
        states = self.problem.next_states[self._states, chosen]
        for index in np.flatnonzero(starting):
            states[index] = self._drawn(int(index))
        self._states = states
        over = self.problem.over[states]
        return self._seen(states), rewards, over, np.zeros_like(over), self._info(states)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, (environments, actions).

        Raises:
            ResetNeeded: no episode has started.
        """
        if self._states is None:
            raise ResetNeeded("no episode has started, so no action is legal; call reset() first")
        return self.problem.action_masks[self._states].astype(np.bool_)

    def _drawn(self, index: int) -> int:
        return int(self._generators[index].integers(self.problem.num_initial))

    def _seen(self, states: IntArray) -> ObservationDict:
        return {
            "observations": self.problem.observations[states],
            "action_mask": self.problem.action_masks[states],
        }

    def _info(self, states: IntArray) -> dict[str, Any]:
        """Return the info arrays, each with Gymnasium's mask `_name`, which is True everywhere."""
        values = tabular_info(self.problem, states)
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        return {**values, **{f"_{name}": everywhere for name in values}}


def tabular_config(options: Mapping[str, Any]) -> TabularConfig:
    """Return the configuration that keyword arguments of `gymnasium.make` describe.

    Raises:
        SpecError: an option is unknown (the message gives the closest match), or a start is not in
            the table.
        UnknownNameError: the table does not have this cost.
        ValueError: a number is out of its range.
    """
    known = [field.name for field in fields(TabularConfig)]
    for name in options:
        if name not in known:
            raise SpecError(
                f"no option {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
    return TabularConfig(**options)


def tabular_observation_space() -> spaces.Dict:
    """Return the observation space of one environment."""
    return spaces.Dict(
        {
            "observations": spaces.Box(-LIMIT, LIMIT, (len(TABULAR_FEATURES),), np.float32),
            "action_mask": spaces.Box(0, 1, (len(ACTIONS),), np.int8),
        }
    )


def tabular_info(problem: TabularProblem, states: IntArray) -> dict[str, NDArray[Any]]:
    """Return the figures of states that reports need in addition to observations."""
    chosen = [problem.states[state] for state in states]
    cost = np.array([problem.relative_cost(state) for state in chosen])
    metric = np.array([state.figures.metric for state in chosen])
    weight = np.array([state.cost_weight for state in chosen])
    trained = np.array([state.num_decisions - state.stopped for state in chosen])
    return {
        "action_mask": problem.action_masks[states],
        "utility": utility(metric, cost, weight),
        "smooth_utility": np.array([problem.smooth_utility(state) for state in chosen]),
        "metric": metric,
        "test_metric": np.array([state.figures.test_metric for state in chosen]),
        "relative_cost": cost,
        "cost_weight": weight,
        "gradient_steps": TRAIN_STEPS * trained,
    }


def check_legal(actions: IntArray, action_masks: NDArray[np.int8], active: BoolArray) -> None:
    """Raise an EditError if an active episode's action is illegal or does not exist."""
    inside = (actions >= 0) & (actions < len(ACTIONS))
    legal = action_masks[np.arange(len(actions)), np.where(inside, actions, 0)] > 0
    refused = np.flatnonzero(active & ~(inside & legal))
    if len(refused):
        episode = int(refused[0])
        places = np.flatnonzero(action_masks[episode])
        allowed = ", ".join(f"{place} ({ACTIONS[place]})" for place in places)
        raise EditError(
            f"action {actions[episode]} of episode {episode} leads out of the table or does not "
            f"exist; info['action_mask'] allows {allowed}"
        )


def _check_no_options(options: dict[str, Any] | None) -> None:
    if options:
        raise ValueError(
            f"reset takes no options, got {', '.join(options)}; pass cost_weights and other "
            "options to gymnasium.make"
        )
