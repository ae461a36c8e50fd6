"""`dynopt/Architecture-v0`: change the structure of a network while it learns."""

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dynopt_envs.config import BackendKind, episode_config
from dynopt_envs.episodes import Episodes, make_episodes
from dynopt_ray.policies import FEATURES, LIMIT, ActionSet
from dynopt_ray.tasks import Task

ObservationDict = dict[str, NDArray[Any]]

# A forked process (`vectorization_mode="async"`) has none of the threads that torch computed with
# before, and would wait for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class ArchitectureEnv(gymnasium.Env[ObservationDict, np.int64]):
    """One network, changed decision by decision and trained in between.

    ## Description
    An episode starts from a trained network of the task. A cursor visits its width groups in
    forward order, over and over. At each step the agent changes the group under the cursor, the
    network is trained for `train_steps` optimizer steps, and its utility
    U = accuracy − λ · relative cost is measured on the whole validation split.

    ## Action space
    `Discrete(number of actions)`. By default there are five: 0 keep, 1 grow, 2 shrink (lowest
    scores first, with compensation), 3 prune (mask the smallest weights that make the group),
    4 stop; the option `actions` replaces them. Illegal actions, those that would
    change nothing, are 0 in `info["action_mask"]` and raise; keep and stop are always legal.

    ## Observation space
    `Dict(observations=Box, action_mask=Box)`. The features are listed in
    `dynopt_ray.policies.observation.FEATURES`; their number and meaning are the same for all
    networks, whatever their depth and kind.

    ## Rewards
    `reward="gain"`: S_t − S_{t−1}; `reward="level"`: S_t. S is the smooth utility: U with the
    mean of accuracy and of the probability given to the right class in place of accuracy, which
    moves in steps of one row. `info` has both, as "utility" and "smooth_utility". Stopping
    changes nothing and trains nothing.

    ## Starting state
    One of `num_starts` networks that are trained once per process, the k-th from seed k. λ is
    `cost_weight`, or drawn anew between 0.05 and 0.75. Both, the batches and all new weights
    depend on the environment's seed alone.

    ## Episode end
    Terminates after `stop` or `horizon` decisions; the steps left are observed, so the horizon
    is part of the task and no truncation.

    ## Arguments
    `task` (name, mapping or `Task`), `backend` ("auto", "population", "module"), and the fields of
    `EpisodeConfig` and `StartConfig` by name.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(
        self,
        task: str | Mapping[str, Any] | Task = "digits-mlp",
        backend: BackendKind = "auto",
        render_mode: None = None,
        **options: Any,
    ) -> None:
        self.render_mode = render_mode
        config = episode_config(options)
        self._episodes = make_episodes(task, config, backend=backend, num_members=1)
        self.observation_space = observation_space(config.actions)
        self._num_actions = len(config.actions)
        self.action_space = spaces.Discrete(self._num_actions)
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Begin an episode; there are no options."""
        super().reset(seed=seed)
        _check_options(options)
        self._over = False
        self._episodes.start([0], [self.np_random])
        self._episodes.look(np.array([True]))
        return self._seen(), self._info()

    def step(self, action: np.int64) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Take one decision.

        Raises:
            InvalidAction: it is no whole number.
            EditError: its mask forbids it.
            ResetNeeded: the episode is over, or none has begun.
        """
        if self._over:
            raise ResetNeeded("the episode is over, or none has begun; call reset() first")
        try:
            chosen = operator.index(action)  # arrays of one whole number are in the space too
        except TypeError as error:
            raise InvalidAction(
                f"{action!r} is no action; they are 0 to {self._num_actions - 1}"
            ) from error
        rewards, over = self._episodes.step(np.array([chosen]), np.array([True]))
        self._over = bool(over[0])
        return self._seen(), float(rewards[0]), bool(over[0]), False, self._info()

    def _seen(self) -> ObservationDict:
        return {name: values[0] for name, values in seen(self._episodes).items()}

    def _info(self) -> dict[str, Any]:
        return {
            name: values[0].copy() if values[0].ndim else float(values[0])
            for name, values in info(self._episodes).items()
        }


class ArchitectureVectorEnv(VectorEnv[ObservationDict, NDArray[np.int64], NDArray[Any]]):
    """Many networks at once, as one stack of tensors where the task allows it.

    Each is what `ArchitectureEnv` is with the same seed. An episode that is over starts anew at
    the step after (its action then does not count), as `AutoresetMode.NEXT_STEP` says.

    Args:
        num_envs: networks.
        task: see `ArchitectureEnv`, as for the other arguments.
        backend: see there.
        render_mode: there is none.
        options: see there.

    Attributes:
        horizon: decisions per episode.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        task: str | Mapping[str, Any] | Task = "digits-mlp",
        backend: BackendKind = "auto",
        render_mode: None = None,
        **options: Any,
    ) -> None:
        config = episode_config(options)
        self.render_mode = render_mode
        self.horizon = config.horizon
        self.num_envs = num_envs
        self._episodes = make_episodes(task, config, backend=backend, num_members=num_envs)
        self.single_observation_space = observation_space(config.actions)
        self._num_actions = len(config.actions)
        self.single_action_space = spaces.Discrete(self._num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Begin all episodes; a single seed s gives environment i the seed s + i."""
        _check_options(options)
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        for index, own in enumerate(seeds or ()):
            if own is not None:
                self._generators[index] = seeding.np_random(own)[0]
        self._over[:] = False
        self._episodes.start(range(self.num_envs), self._generators)
        self._episodes.look(~self._over)
        return seen(self._episodes), self._info()

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[ObservationDict, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one decision in each; episodes that were over start anew instead.

        Raises:
            InvalidAction: they are not one whole number per environment.
            EditError: a mask forbids one of them.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise InvalidAction(
                f"actions have the shape {actions.shape} and the type {actions.dtype}; give "
                f"{self.num_envs} whole numbers from 0 to {self._num_actions - 1}"
            )
        starting = np.flatnonzero(self._over)
        rewards, over = self._episodes.step(actions, ~self._over)
        if len(starting):
            self._episodes.start(starting.tolist(), [self._generators[i] for i in starting])
            self._episodes.look(self._over)
        self._over = over
        return (
            seen(self._episodes),
            rewards,
            over.copy(),
            np.zeros_like(over),
            self._info(),
        )

    def _info(self) -> dict[str, Any]:
        """Arrays, each beside `_name`: which environments have it, as Gymnasium wants it."""
        values = {name: value.copy() for name, value in info(self._episodes).items()}
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        return {**values, **{f"_{name}": everywhere for name in values}}


def observation_space(actions: ActionSet) -> spaces.Dict:
    """The space of one environment's observations."""
    return spaces.Dict(
        {
            "observations": spaces.Box(-LIMIT, LIMIT, (len(FEATURES),), np.float32),
            "action_mask": spaces.Box(0, 1, (len(actions),), np.int8),
        }
    )


def seen(episodes: Episodes) -> ObservationDict:
    """The observations of all episodes."""
    return {
        "observations": episodes.observation.copy(),
        "action_mask": episodes.action_mask.copy(),
    }


def info(episodes: Episodes) -> dict[str, NDArray[Any]]:
    """What reports need beside the observation, of all episodes."""
    return {
        "action_mask": episodes.action_mask,
        "utility": episodes.utility,
        "smooth_utility": episodes.smooth_utility,
        "metric": episodes.metric,
        "relative_cost": episodes.relative_cost,
        "cost_weight": episodes.cost_weight,
    }


def _check_options(options: dict[str, Any] | None) -> None:
    if options:
        raise ValueError(
            f"reset takes no options, got {', '.join(options)}; give cost_weight and the others to "
            "gymnasium.make"
        )
