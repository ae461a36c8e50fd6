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
from numpy.typing import NDArray

from dynopt_envs.backend import NOTHING, Backend
from dynopt_envs.config import COST_WEIGHTS, BackendKind, EpisodeConfig
from dynopt_envs.module_backend import ModuleBackend, num_groups
from dynopt_envs.population_backend import (
    MlpFrame,
    PopulationBackend,
    stack_frame,
    why_not_stacked,
)
from dynopt_ray.arrays import BoolArray, FloatArray, IntArray
from dynopt_ray.devices import chosen_device
from dynopt_ray.errors import EditError, UnknownNameError
from dynopt_ray.policies import (
    CHARGED_COSTS,
    ActionMask,
    CostMixture,
    Descriptors,
    EpisodeProgress,
    Observation,
    Performance,
    Preview,
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
        charges: (N, 4) the weights of `CHARGED_COSTS` in the cost that utility charges for.
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
        self._changed: BoolArray = np.zeros(num_members, dtype=np.bool_)
        self._now = self._before = Performance(*np.zeros((4, num_members)))
        self.cost_weight: FloatArray = np.zeros(num_members)
        self.charges: FloatArray = np.zeros((num_members, len(CHARGED_COSTS)))
        self.relative_cost: FloatArray = np.zeros(num_members)
        self.utility: FloatArray = np.zeros(num_members)
        self.smooth_utility: FloatArray = np.zeros(num_members)
        self.gradient_steps: IntArray = np.zeros(num_members, dtype=np.int64)
        self.illegal: BoolArray = np.zeros(num_members, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def has_started(self) -> bool:
        """Whether there is anything to show."""
        return hasattr(self, "observation")

    def figure(self, name: str) -> NDArray[Any]:
        """Return one of the attributes by its name."""
        values: NDArray[Any] = getattr(self, name)
        return values

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
            starts.append(int(generator.integers(self._backend.num_starts)))
            drawn = generator.uniform(*COST_WEIGHTS)
            given = self._config.cost_weight
            self.cost_weight[member] = drawn if given is None else given
            self.charges[member] = self._charges(float(generator.uniform()))
            seeds.append(int(generator.integers(_LARGEST_SEED)))
        chosen = list(members)
        self._backend.start(chosen, starts, seeds)
        for counts in (self._steps, self._cursor, self.gradient_steps, self.illegal):
            counts[chosen] = 0
        self._now = self._now.replaced(chosen, self._backend.measure())
        self._before = self._before.replaced(chosen, self._now)
        self._changed[chosen] = True
        self._networks = None

    def step(self, actions: IntArray, active: BoolArray) -> tuple[FloatArray, BoolArray]:
        """Carry out one action in each active episode; `look` must follow.

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
        self._changed |= changing
        self._judge(networks)
        now = self.smooth_utility
        reward = now - before if self._config.reward == "gain" else now
        over = active & (stops | (self._steps >= self._config.horizon))
        return np.where(active, reward, 0.0), over

    def look(self, deciding: BoolArray) -> None:
        """Update observations, masks and figures of the episodes that were started or changed.

        Args:
            deciding: (N,) the episodes in which an action will be chosen next. Nothing is
                previewed for the others.
        """
        if self._networks is None:
            self._networks = self._backend.describe(self._cursor)
            self._judge(self._networks)
        config, networks, at = self._config, self._networks, self._changed
        progress = EpisodeProgress(
            now=self._now,
            before=self._before,
            num_samples=self._backend.num_samples,
            cost_weight=self.cost_weight,
            charges=self.charges,
            steps_left=1 - self._steps / config.horizon,
        )
        action_mask = config.actions.mask(networks)
        preview = None
        if config.preview:
            now = self._now
            preview = Preview.unchanged(now.smooth, now.loss, networks.costs, len(config.actions))
            members = np.flatnonzero(at & deciding)
            if len(members):
                found = self._backend.preview(networks, action_mask, members)
                preview.put(members.tolist(), found)
        seen = situation(networks, progress, config.actions, action_mask, preview)
        if not self.has_started:
            self.observation, self.action_mask = seen.observation, seen.action_mask
        self.observation = np.where(at[:, None], seen.observation, self.observation)
        self.action_mask = np.where(at[:, None], seen.action_mask, self.action_mask)
        self._changed = np.zeros_like(at)

    def _judge(self, networks: Descriptors) -> None:
        """Update costs and utilities of the episodes that were started or changed."""
        at = self._changed
        cost = (networks.costs * self.charges).sum(1)
        self.relative_cost = np.where(at, cost, self.relative_cost)
        now = utility(self._now.metric, self.relative_cost, self.cost_weight)
        self.utility = np.where(at, now, self.utility)
        now = utility(self._now.smooth, self.relative_cost, self.cost_weight)
        self.smooth_utility = np.where(at, now, self.smooth_utility)

    def _charges(self, drawn: float) -> tuple[float, ...]:
        """Return the weights of costs in an episode that drew this number between 0 and 1."""
        cost = self._config.cost
        return CostMixture.of(
            {"flops": drawn, "nonzero": 1 - drawn} if cost is None else cost
        ).weights

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


TaskConfig = str | Mapping[str, Any] | Task
"""A task, its name, or a mapping of its name and options."""


def make_episodes(
    task: TaskConfig | Sequence[TaskConfig],
    config: EpisodeConfig,
    *,
    backend: BackendKind,
    num_members: int | None = None,
) -> list[Episodes]:
    """Make episodes on one or more tasks.

    Args:
        task: a task or several.
        config: the configuration of the episodes.
        backend: "population" stacks all networks, "module" runs them one by one, "auto" stacks
            those whose task allows it.
        num_members: number of episodes of all kinds together, which is split as evenly as
            possible; None makes one of each kind.

    Returns:
        One `Episodes` for each kind of task. Tasks are of one kind if their networks can share a
        stack, or else if they have equally many width groups.

    Raises:
        UnknownNameError: there is no such task or backend.
        DeviceError: there is no such device.
        ValueError: the backend is "population", but a task's networks cannot be stacked; the
            message says why. Or there are no tasks, or more kinds of them than episodes.
    """
    if backend not in get_args(BackendKind):
        raise UnknownNameError("backend", str(backend), get_args(BackendKind))
    given = [task] if isinstance(task, str | Mapping | Task) else list(task)
    if not given:
        raise ValueError("task is an empty list; give at least one task")
    kinds: dict[MlpFrame | int, list[Task]] = {}
    for one in given:
        loaded = one if isinstance(one, Task) else _task(_key(one))
        if config.device is not None:
            loaded = _on(loaded, chosen_device(config.device))
        kinds.setdefault(_kind(loaded, backend), []).append(loaded)
    sizes = [1] * len(kinds)
    if num_members is not None:
        sizes = [(num_members + k) // len(kinds) for k in reversed(range(len(kinds)))]
        if not sizes[-1]:
            raise ValueError(
                f"{num_members} environments cannot play {len(kinds)} kinds of tasks, whose "
                "networks differ in depth, inputs or outputs; use as many environments as kinds"
            )
    return [
        Episodes(_backend(kind, tasks, config, size), config, size)
        for (kind, tasks), size in zip(kinds.items(), sizes, strict=True)
    ]


def _kind(task: Task, backend: BackendKind) -> MlpFrame | int:
    """Return what the networks of tasks must have in common to advance together."""
    reason = why_not_stacked(task)
    if backend == "population" and reason:
        raise ValueError(
            f"backend 'population' cannot run task {task.name!r}: {reason}. Use backend='module'"
        )
    return num_groups(task) if backend == "module" or reason else stack_frame(task)


def _backend(
    kind: MlpFrame | int, tasks: Sequence[Task], config: EpisodeConfig, num_members: int
) -> Backend:
    made = ModuleBackend if isinstance(kind, int) else PopulationBackend
    return made(tasks, config, num_members)


def _key(task: str | Mapping[str, Any]) -> str:
    return json.dumps({"name": task} if isinstance(task, str) else dict(task), sort_keys=True)


@lru_cache(maxsize=256)
def _on(task: Task, device: torch.device) -> Task:
    """Move a task once per process and device, so that its pool of networks is trained once."""
    return task if task.device == device else task.to(device)


@lru_cache(maxsize=256)
def _task(key: str) -> Task:
    """Load a task once per process and key, so that its pool of networks is trained once."""
    return load_task(json.loads(key))
