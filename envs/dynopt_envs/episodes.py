"""Many episodes at once: their starts, steps, rewards and ends, on any backend.

An episode starts from a copy of a trained network. In each step an action changes the group under
the cursor, the backend trains and measures the network, the cursor moves to the next group, and the
policy's next observation and action mask are computed. The episode is over after an action that
ends it or after `horizon` steps.

With `reward="gain"` the reward is the change of smooth utility. The rewards of an episode add up to
its final smooth utility minus its initial one. The initial one does not depend on the policy, so
maximising the undiscounted return maximises the final smooth utility.

All episodes advance together, so that a backend can train N networks at once, but they start and
end at different times. Every figure is therefore an array with one entry per episode, and the
figures of an episode that is over do not change until it is started again. Each episode draws its
starting network, λ and seed from its own generator, so it does not depend on the other episodes.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import torch

from dynopt_envs.backend import NOTHING, Backend
from dynopt_envs.config import COST_WEIGHTS, BackendKind, EpisodeConfig
from dynopt_envs.module_backend import ModuleBackend
from dynopt_envs.population_backend import PopulationBackend, why_not_stacked
from dynopt_ray.arrays import BoolArray, FloatArray, IntArray
from dynopt_ray.devices import chosen_device
from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.policies import (
    CHARGED_COSTS,
    ActionMask,
    Descriptors,
    Observation,
    Performance,
    situation,
    utility,
)
from dynopt_ray.tasks import Task, load_task

_LARGEST_SEED = 2**31 - 1


class Episodes:
    """N episodes that advance together, each with its own starting network and λ.

    Args:
        backend: holds, changes and trains the networks.
        config: the configuration of the episodes.
        num_members: number of episodes, N.

    Attributes:
        observation: (N, features) the observations.
        action_mask: (N, actions) 1 if an action is legal, else 0.
        utility: (N,) the present utility U, with the task's metric.
        smooth_utility: (N,) the present U with `Metrics.smooth`, which rewards are computed from.
        metric: (N,) the task's metric on validation data.
        relative_cost: (N,) the network's cost over its cost at the start.
        cost_weight: (N,) λ.
        gradient_steps: (N,) the optimizer steps that the network took since the episode's start.
        illegal: (N,) whether the latest action was forbidden and keep took its place.
    """

    observation: Observation
    action_mask: ActionMask

    def __init__(self, backend: Backend, config: EpisodeConfig, num_members: int) -> None:
        self._backend = backend
        self._config = config
        self._steps: IntArray = np.zeros(num_members, dtype=np.int64)
        self._cursor: IntArray = np.zeros(num_members, dtype=np.int64)
        self._networks: Descriptors | None = None
        self._now = self._before = Performance(*np.zeros((4, num_members)))
        self.cost_weight: FloatArray = np.zeros(num_members)
        self.relative_cost: FloatArray = np.zeros(num_members)
        self.utility: FloatArray = np.zeros(num_members)
        self.smooth_utility: FloatArray = np.zeros(num_members)
        self.gradient_steps: IntArray = np.zeros(num_members, dtype=np.int64)
        self.illegal: BoolArray = np.zeros(num_members, dtype=np.bool_)

    @property
    def metric(self) -> FloatArray:
        """(N,) the task's metric on validation data."""
        return self._now.metric

    @property
    def networks(self) -> Descriptors | None:
        """The descriptors of all networks; None before the first episode has started."""
        return self._networks

    def start(self, members: Sequence[int], generators: Sequence[np.random.Generator]) -> None:
        """Start new episodes; `look` must follow.

        Args:
            members: indices of the episodes to start.
            generators: for each member, the generator that draws its starting network, λ and seed.
        """
        starts, seeds = [], []
        for member, generator in zip(members, generators, strict=True):
            starts.append(int(generator.integers(self._config.start.num_starts)))
            drawn = generator.uniform(*COST_WEIGHTS)
            given = self._config.cost_weight
            self.cost_weight[member] = drawn if given is None else given
            seeds.append(int(generator.integers(_LARGEST_SEED)))
        chosen = list(members)
        self._backend.start(chosen, starts, seeds)
        for counts in (self._steps, self._cursor, self.gradient_steps, self.illegal):
            counts[chosen] = 0
        self._now = self._now.replaced(chosen, self._backend.measure())
        self._before = self._before.replaced(chosen, self._now)

    def step(self, actions: IntArray, active: BoolArray) -> tuple[FloatArray, BoolArray]:
        """Carry out one action in each active episode.

        Args:
            actions: (N,) one action per episode. Those of inactive episodes are ignored.
            active: (N,) which episodes take part. Inactive episodes must be started before they
                can take part again.

        Returns:
            The rewards and whether each episode is over, (N,) each; 0 and False if inactive.

        Raises:
            EditError: an action of an active episode does not exist, or it is illegal and illegal
                actions are not treated as keep.
        """
        assert self._networks is not None, "step before start and look"
        actions = self._permitted(actions, active)
        ends = np.array([action.ends for action in self._config.actions])
        stops = active & (actions != NOTHING) & ends[actions]
        changing = active & ~stops
        before = self.smooth_utility
        self._before = self._now
        self._backend.apply(self._networks, np.where(changing, actions, NOTHING))
        cursor = np.where(changing, (self._cursor + 1) % self._backend.num_groups, self._cursor)
        if changing.any():
            self._backend.train(changing)
        # Describe before measuring: a backend may then read everything from a GPU at once.
        networks = self._backend.describe(cursor)
        if changing.any():
            trained = np.flatnonzero(changing).tolist()
            self._now = self._now.replaced(trained, self._backend.measure())
        self._steps += active
        self.gradient_steps += self._config.train_steps * changing
        self._cursor, self._networks = cursor, networks
        self._show(networks, changing)
        now = self.smooth_utility
        reward = now - before if self._config.reward == "gain" else now
        over = active & (stops | (self._steps >= self._config.horizon))
        return np.where(active, reward, 0.0), over

    def look(self, at: BoolArray) -> None:
        """Describe the networks and update observations, masks and figures of the episodes `at`."""
        self._networks = self._backend.describe(self._cursor)
        self._show(self._networks, at)

    def _show(self, networks: Descriptors, at: BoolArray) -> None:
        """Update observations, masks and figures of the episodes `at`."""
        config = self._config
        seen = situation(
            networks,
            now=self._now,
            before=self._before,
            num_samples=self._backend.num_samples,
            cost_weight=self.cost_weight,
            steps_left=1 - self._steps / config.horizon,
            actions=config.actions,
        )
        cost = networks.costs[:, CHARGED_COSTS.index(config.cost)]
        if not hasattr(self, "observation"):
            self.observation, self.action_mask = seen.observation, seen.action_mask
        self.observation = np.where(at[:, None], seen.observation, self.observation)
        self.action_mask = np.where(at[:, None], seen.action_mask, self.action_mask)
        self.relative_cost = np.where(at, cost, self.relative_cost)
        now = utility(self._now.metric, self.relative_cost, self.cost_weight)
        self.utility = np.where(at, now, self.utility)
        now = utility(self._now.smooth, self.relative_cost, self.cost_weight)
        self.smooth_utility = np.where(at, now, self.smooth_utility)

    def _permitted(self, actions: IntArray, active: BoolArray) -> IntArray:
        """Return the actions to carry out: `NOTHING` for illegal and inactive ones.

        Raises:
            EditError: an action of an active episode does not exist, or it is illegal and illegal
                actions are not treated as keep.
        """
        rows = np.arange(len(actions))
        inside = (actions >= 0) & (actions < len(self._config.actions))
        legal = inside & (self.action_mask[rows, np.where(inside, actions, 0)] > 0)
        refused = active & ~(inside if self._config.illegal == "keep" else legal)
        if refused.any():
            member = int(np.flatnonzero(refused)[0])
            labels = self._config.actions.labels
            legal_here = np.flatnonzero(self.action_mask[member])
            allowed = ", ".join(f"{place} ({labels[place]})" for place in legal_here)
            raise EditError(
                f"action {actions[member]} of episode {member} would change nothing or does not "
                f"exist; info['action_mask'] allows {allowed}"
            )
        self.illegal = np.where(active, ~legal, self.illegal)
        return np.where(active & legal, actions, NOTHING)


def make_episodes(
    task: str | Mapping[str, Any] | Task,
    config: EpisodeConfig,
    *,
    backend: BackendKind,
    num_members: int,
) -> Episodes:
    """Make episodes on a task.

    Args:
        task: a task, its name, or a mapping of its name and options.
        config: the configuration of the episodes.
        backend: "population" stacks all networks, "module" runs them one by one, "auto" stacks
            them if the task allows it.
        num_members: number of episodes.

    Raises:
        UnknownNameError: there is no such task or backend.
        DeviceError: there is no such device.
        ValueError: the backend is "population", but the task's networks cannot be stacked; the
            message says why.
    """
    if backend not in get_args(BackendKind):
        raise UnknownNameError("backend", str(backend), get_args(BackendKind))
    loaded = task if isinstance(task, Task) else _task(_key(task))
    if config.device is not None:
        loaded = _on(loaded, chosen_device(config.device))
    reason = why_not_stacked(loaded)
    if backend == "population" and reason:
        raise ValueError(
            f"backend 'population' cannot run task {loaded.name!r}: {reason}. Use backend='module'"
        )
    stacked = backend != "module" and reason is None
    networks: Backend = (PopulationBackend if stacked else ModuleBackend)(
        loaded, config, num_members
    )
    return Episodes(networks, config, num_members)


def _key(task: str | Mapping[str, Any]) -> str:
    return json.dumps({"name": task} if isinstance(task, str) else dict(task), sort_keys=True)


@lru_cache(maxsize=8)
def _on(task: Task, device: torch.device) -> Task:
    """Move a task once per process and device, so that its pool of networks is trained once."""
    return task if task.device == device else task.to(device)


@lru_cache(maxsize=8)
def _task(key: str) -> Task:
    """Load a task once per process and key, so that its pool of networks is trained once."""
    return load_task(json.loads(key))
