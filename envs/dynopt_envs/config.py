"""The configuration of episodes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from dynopt_ray.errors import SpecError, UnknownNameError, did_you_mean
from dynopt_ray.policies import DEFAULT_ACTIONS, DEFAULT_COST, ActionSet, CostConfig, CostMixture

RewardKind = Literal["gain", "level"]
IllegalAction = Literal["raise", "keep"]
BackendKind = Literal["auto", "population", "module"]

COST_WEIGHTS = (0.05, 0.75)
"""λ is drawn uniformly between these if it is not given."""


@dataclass(frozen=True)
class StartConfig:
    """How the pool of starting networks is trained; episodes start from copies of its networks.

    Attributes:
        num_starts: number of networks in the pool.
        first_start: seed of the first network of the pool; the others follow it. Pools that share
            no seed share no network, e.g. one to train policies and one to judge them.
        start_steps: number of optimizer steps, from half of this for the first network of the pool
            to twice this for the last. Policies thus meet barely trained and converged networks.
        batch_size: rows per batch, for the pool and in episodes.
        start_rate: learning rate of SGD for the pool.
        momentum: momentum of SGD, for the pool and in episodes.
    """

    num_starts: int = 8
    first_start: int = 0
    start_steps: int = 200
    batch_size: int = 32
    start_rate: float = 0.05
    momentum: float = 0.9

    def steps_of(self, index: int) -> int:
        """Return the number of optimizer steps for one network of the pool."""
        place = index / (self.num_starts - 1) if self.num_starts > 1 else 0.5
        return max(1, round(self.start_steps * 2 ** (2 * place - 1)))


@dataclass(frozen=True)
class EpisodeConfig:
    """The configuration of an episode, except for the task.

    Attributes:
        cost_weight: λ; None draws it between `COST_WEIGHTS` for each episode.
        cost: the cost that utility charges for: its kind, or a mapping of kinds to weights. None
            draws the share of FLOPs for each episode; non-zero weights are the rest.
        horizon: the largest number of decisions of an episode.
        train_steps: number of optimizer steps after each decision.
        learning_rate: learning rate of SGD after each decision. At the rate of the pool, the
            training of a network that was shrunk several times is unstable: within 20 steps its
            loss rises, and any difference, even one of rounding, grows threefold to tenfold.
        reward: with "gain" the reward is S_t − S_{t−1}, so that the return is the gain of the
            whole episode; with "level" it is S_t. S is the smooth utility.
        actions: the actions that policies choose from.
        preview: whether observations tell for every action what it would do right away, measured
            before one is chosen (see `ACTION_FEATURES`). This takes several times as long.
        device: where networks are trained: "auto" is the GPU if there is one, or else the CPU. None
            is the task's own device.
        illegal: "raise" refuses a forbidden action; "keep" carries out keep in its place and
            says so in `info["illegal"]`, for algorithms that know no action masks.
        start: how the starting networks are trained.

    Raises:
        UnknownNameError: there is no such reward, cost or treatment of illegal actions.
        ValueError: a number is out of its range.
    """

    cost_weight: float | None = None
    cost: CostConfig | None = DEFAULT_COST
    horizon: int = 16
    train_steps: int = 20
    learning_rate: float = 0.01
    reward: RewardKind = "gain"
    actions: ActionSet = DEFAULT_ACTIONS
    preview: bool = False
    device: str | None = None
    illegal: IllegalAction = "raise"
    start: StartConfig = field(default_factory=StartConfig)

    def __post_init__(self) -> None:
        if self.reward not in get_args(RewardKind):
            raise UnknownNameError("reward", str(self.reward), get_args(RewardKind))
        if self.illegal not in get_args(IllegalAction):
            raise UnknownNameError("illegal", str(self.illegal), get_args(IllegalAction))
        if self.cost is not None:
            CostMixture.of(self.cost)
        for name in ("horizon", "train_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_starts", "start_steps", "batch_size"):
            if getattr(self.start, name) < 1:
                raise ValueError(f"{name} is {getattr(self.start, name)}; it must be at least 1")
        if self.start.first_start < 0:
            raise ValueError(f"first_start is {self.start.first_start}; it must be at least 0")
        weight = self.cost_weight
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"cost_weight is {weight}; it must be a finite number of at least 0")


def episode_config(options: Mapping[str, Any]) -> EpisodeConfig:
    """Return the configuration that keyword arguments of `gymnasium.make` describe.

    Args:
        options: fields of `EpisodeConfig` and `StartConfig` by name. `actions` may also be a list
            of actions as `ActionSet` takes them.

    Raises:
        SpecError: an option is unknown (the message gives the closest match), or an action cannot
            be made.
        UnknownNameError: there is no such action, reward or cost.
        ValueError: a number is out of its range.
    """
    of_start = {field.name for field in fields(StartConfig)}
    of_episode = {field.name for field in fields(EpisodeConfig)} - {"start"}
    for name in options:
        known = of_start | of_episode
        if name not in known:
            raise SpecError(
                f"no option {name!r}.{did_you_mean(name, known)} Known: task, backend, "
                f"{', '.join(sorted(known))}."
            )
    given = {name: value for name, value in options.items() if name in of_episode}
    if "actions" in given and not isinstance(given["actions"], ActionSet):
        given["actions"] = ActionSet(given["actions"])
    return EpisodeConfig(
        **given,
        start=StartConfig(**{k: v for k, v in options.items() if k in of_start}),
    )
