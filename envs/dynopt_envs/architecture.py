"""`dynopt/Architecture-v0`: change the structure of a network while it trains."""

import operator
import os
from collections.abc import Sequence
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

from dynopt_envs.config import BackendKind, EpisodeConfig, episode_config
from dynopt_envs.episodes import Episodes, TaskConfig, make_episodes
from dynopt_envs.joint_episodes import FIGURES, JointEpisodes
from dynopt_envs.rendering import EpisodeFrame, check_render_mode, draw_episode
from dynopt_ray.policies import ACTION_FEATURES, FEATURES, LIMIT

ObservationDict = dict[str, NDArray[Any]]

# With `vectorization_mode="async"` environments run in forked processes. A forked process does not
# inherit torch's threads and would wait for them forever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class ArchitectureEnv(gymnasium.Env[ObservationDict, np.int64]):
    """One network, which the agent changes step by step while it trains.

    ## Description
    An episode starts from a trained network of the task. A cursor visits the network's width groups
    in forward order, again and again. In each step the action changes the group under the cursor,
    then the network is trained for `train_steps` optimizer steps, and its utility
    U = metric − λ · relative cost is measured on the whole validation split.

    ## Action space
    `Discrete(number of actions)`. By default there are five: 0 keep, 1 grow, 2 shrink (remove the
    units with the lowest scores and refit the layers that read them), 3 prune (mask the smallest
    weights that produce the group) and 4 stop. The option `actions` replaces them. An action that
    would change nothing is illegal: it is 0 in `info["action_mask"]` and False in `action_masks()`.
    Taking it raises an error, or with `illegal="keep"` counts as keep and sets `info["illegal"]`.
    Keep and stop are always legal.

    ## Observation space
    `Dict(observations=Box, action_mask=Box)`. The features are listed in
    `dynopt_ray.policies.observation.FEATURES`. Their number and meaning are the same for networks
    of any depth and kind. With `preview=True` the features of each action follow, action after
    action, as listed in `dynopt_ray.policies.previews.ACTION_FEATURES`: what the action would do
    right away, measured on the validation split.

    ## Rewards
    S_t − S_{t−1} with `reward="gain"`, S_t with `reward="level"`. S is the smooth utility: U with
    `Metrics.smooth` in place of the metric. `Metrics.smooth` is the mean of accuracy and of the
    probability given to the right class, because accuracy alone moves in steps of one row. `info`
    has both, as "utility" and "smooth_utility". The stop action neither changes nor trains the
    network.

    ## Starting state
    One of `num_starts` networks, which are trained once per process, network k from seed
    `first_start` + k. λ is `cost_weight` if given, else drawn between 0.05 and 0.75 for each
    episode. The starting network, λ, the batches, all new weights and what layers such as dropout
    draw depend only on the environment's seed. (A data loader draws from a generator of its own.)

    ## Episode end
    The episode terminates after `stop` or after `horizon` steps. Reaching the horizon is not a
    truncation, because the observation contains the steps left.

    ## Arguments
    `task` (name, mapping or `Task`, or a list of these; each episode draws one, and a starting
    network with it), `backend` ("auto", "population" or "module"), and the fields of
    `EpisodeConfig` and `StartConfig` by name. With `render_mode="rgb_array"`, `render()` returns a
    picture of the network and of the episode so far.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012  # as Gymnasium's

    def __init__(
        self,
        task: TaskConfig | Sequence[TaskConfig] = "digits-mlp",
        backend: BackendKind = "auto",
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self._frames: list[EpisodeFrame] = []
        config = episode_config(options)
        self._kinds = make_episodes(task, config, backend=backend)
        self._episodes = self._kinds[0]
        self.observation_space = observation_space(config)
        self._labels = config.actions.labels
        self._num_actions = len(config.actions)
        self.action_space = spaces.Discrete(self._num_actions)
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Start an episode; `options` must be empty."""
        super().reset(seed=seed)
        _check_options(options)
        self._over = False
        if len(self._kinds) > 1:
            self._episodes = self._kinds[int(self.np_random.integers(len(self._kinds)))]
        self._episodes.start([0], [self.np_random])
        self._episodes.look(np.array([True]))
        self._frames = []
        self._record(None)
        return self._seen(), self._info()

    def step(self, action: np.int64) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Carry out one action and train the network.

        Raises:
            InvalidAction: the action is not a whole number.
            EditError: the action does not exist, or it is illegal and `illegal` is "raise".
            ResetNeeded: the episode is over, or none has started.
        """
        if self._over:
            raise ResetNeeded("the episode is over, or none has started; call reset() first")
        try:
            chosen = operator.index(action)  # the space also contains arrays of one whole number
        except TypeError as error:
            raise InvalidAction(
                f"{action!r} is not an action; actions are 0 to {self._num_actions - 1}"
            ) from error
        rewards, over = self._episodes.step(np.array([chosen]), np.array([True]))
        self._episodes.look(~over)
        self._over = bool(over[0])
        self._record("keep" if self._episodes.illegal[0] else self._labels[chosen])
        return self._seen(), float(rewards[0]), bool(over[0]), False, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, (actions,), as sb3-contrib's MaskablePPO asks for.

        Raises:
            ResetNeeded: no episode has started.
        """
        masks: NDArray[np.bool_] = legal_actions(self._episodes)[0]
        return masks

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return a picture of the network and of the episode so far; None without a render mode.

        Raises:
            ResetNeeded: no episode has started.
        """
        return None if self.render_mode is None else draw_episode(self._frames)

    def _record(self, action: str | None) -> None:
        """Remember the network after an action, if pictures are wanted."""
        networks = self._episodes.networks
        if self.render_mode is None or networks is None:
            return
        figures = ("metric", "relative_cost", "utility", "cost_weight")
        self._frames.append(
            EpisodeFrame(
                widths=networks.widths[0].tolist(),
                start_widths=networks.start_widths[0].tolist(),
                cursor=int(networks.cursor[0]),
                action=action,
                **{name: float(getattr(self._episodes, name)[0]) for name in figures},
            )
        )

    def _seen(self) -> ObservationDict:
        return {name: values[0] for name, values in seen(self._episodes).items()}

    def _info(self) -> dict[str, Any]:
        return {
            name: values[0].copy() if values[0].ndim else values[0].item()
            for name, values in info(self._episodes).items()
        }


class ArchitectureVectorEnv(VectorEnv[ObservationDict, NDArray[np.int64], NDArray[Any]]):
    """Many environments at once, as one stack of tensors if the task allows it.

    Each environment behaves as an `ArchitectureEnv` with the same seed. When an episode is over,
    the next step ignores its action and starts a new episode (`AutoresetMode.NEXT_STEP`).

    Args:
        num_envs: number of environments, each with one network.
        task: see `ArchitectureEnv`. With a list, tasks are of one kind if their networks can share
            a stack, or else if they have equally many width groups. The environments play the
            kinds in turn, the first environment the first kind; each episode draws a task of its
            kind.
        backend: see `ArchitectureEnv`.
        render_mode: must be None; only single environments can be rendered.
        options: fields of `EpisodeConfig` and `StartConfig` by name.

    Attributes:
        horizon: the largest number of steps of an episode.
        num_action_features: the number of features of each action, at the end of observations.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        task: TaskConfig | Sequence[TaskConfig] = "digits-mlp",
        backend: BackendKind = "auto",
        render_mode: None = None,
        **options: Any,
    ) -> None:
        config = episode_config(options)
        self.render_mode = render_mode
        self.horizon = config.horizon
        self.num_action_features = num_action_features(config)
        self.num_envs = num_envs
        kinds = make_episodes(task, config, backend=backend, num_members=num_envs)
        self._episodes = kinds[0] if len(kinds) == 1 else JointEpisodes(kinds)
        self.single_observation_space = observation_space(config)
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
        """Start all episodes; a single seed s gives environment i the seed s + i."""
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
        """Carry out one action in each environment; episodes that were over restart instead.

        Raises:
            InvalidAction: the actions are not one whole number per environment.
            EditError: an action does not exist, or it is illegal and `illegal` is "raise".
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise InvalidAction(
                f"actions have the shape {actions.shape} and the dtype {actions.dtype}; give "
                f"{self.num_envs} whole numbers from 0 to {self._num_actions - 1}"
            )
        starting = np.flatnonzero(self._over)
        rewards, over = self._episodes.step(actions, ~self._over)
        if len(starting):
            self._episodes.start(starting.tolist(), [self._generators[i] for i in starting])
        self._episodes.look(~over)
        self._over = over
        return (
            seen(self._episodes),
            rewards,
            over.copy(),
            np.zeros_like(over),
            self._info(),
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, (environments, actions).

        Raises:
            ResetNeeded: no episode has started.
        """
        return legal_actions(self._episodes)

    def _info(self) -> dict[str, Any]:
        """Return the info arrays, each with Gymnasium's mask `_name`, which is True everywhere."""
        values = {name: value.copy() for name, value in info(self._episodes).items()}
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        return {**values, **{f"_{name}": everywhere for name in values}}


def observation_space(config: EpisodeConfig) -> spaces.Dict:
    """Return the observation space of one environment."""
    num_actions = len(config.actions)
    num_features = len(FEATURES) + num_action_features(config) * num_actions
    return spaces.Dict(
        {
            "observations": spaces.Box(-LIMIT, LIMIT, (num_features,), np.float32),
            "action_mask": spaces.Box(0, 1, (num_actions,), np.int8),
        }
    )


def num_action_features(config: EpisodeConfig) -> int:
    """Return the number of features of each action; 0 without previews."""
    return len(ACTION_FEATURES) if config.preview else 0


def seen(episodes: Episodes | JointEpisodes) -> ObservationDict:
    """Return copies of the observations of all episodes."""
    return {
        "observations": episodes.figure("observation").copy(),
        "action_mask": episodes.figure("action_mask").copy(),
    }


def info(episodes: Episodes | JointEpisodes) -> dict[str, NDArray[Any]]:
    """Return the figures of all episodes that reports need in addition to observations."""
    return {name: episodes.figure(name) for name in FIGURES if name != "observation"}


def legal_actions(episodes: Episodes | JointEpisodes) -> NDArray[np.bool_]:
    """Return which actions are legal now, (N, actions).

    Raises:
        ResetNeeded: no episode has started.
    """
    if not episodes.has_started:
        raise ResetNeeded("no episode has started, so no action is legal; call reset() first")
    return episodes.figure("action_mask").astype(np.bool_)


def _check_options(options: dict[str, Any] | None) -> None:
    if options:
        raise ValueError(
            f"reset takes no options, got {', '.join(options)}; pass cost_weight and other options "
            "to gymnasium.make"
        )
