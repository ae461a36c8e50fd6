"""What an episode of structure changes is made of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from dynopt_ray.errors import SpecError, UnknownNameError, did_you_mean
from dynopt_ray.policies import CHARGED_COSTS, DEFAULT_ACTIONS, ActionSet, ChargedCost

RewardKind = Literal["gain", "level"]
BackendKind = Literal["auto", "population", "module"]

COST_WEIGHTS = (0.05, 0.75)
"""Between these λ is drawn, uniformly, where it is not given."""


@dataclass(frozen=True)
class StartConfig:
    """How the starting networks are made: a pool of them is trained once and copied ever after.

    Attributes:
        num_starts: networks in the pool, from seeds 0, 1, …; each episode starts from one of them.
        start_steps: optimizer steps they are trained for: from half as many to twice as many, so
            that policies meet networks that have just begun and such that have settled.
        batch_size: rows per batch, here and in the episodes.
        learning_rate: of SGD, likewise.
        momentum: of SGD, likewise.
    """

    num_starts: int = 8
    start_steps: int = 200
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9

    def steps_of(self, index: int) -> int:
        """Optimizer steps of one network of the pool."""
        place = index / (self.num_starts - 1) if self.num_starts > 1 else 0.5
        return max(1, round(self.start_steps * 2 ** (2 * place - 1)))


@dataclass(frozen=True)
class EpisodeConfig:
    """All that an episode is made of, but the task.

    Attributes:
        cost_weight: λ; None draws it anew for each episode between `COST_WEIGHTS`.
        cost: the cost that utility charges for.
        horizon: decisions per episode.
        train_steps: optimizer steps after each decision.
        reward: "gain" pays U_t − U_{t−1}, so the return is the whole gain; "level" pays U_t.
        actions: what policies choose among; by name, as mappings with arguments, or as objects.
        start: how the starting networks are made.
    """

    cost_weight: float | None = None
    cost: ChargedCost = "nonzero"
    horizon: int = 16
    train_steps: int = 20
    reward: RewardKind = "gain"
    actions: ActionSet = DEFAULT_ACTIONS
    start: StartConfig = field(default_factory=StartConfig)

    def __post_init__(self) -> None:
        if self.reward not in get_args(RewardKind):
            raise UnknownNameError("reward", str(self.reward), get_args(RewardKind))
        if self.cost not in CHARGED_COSTS:
            raise UnknownNameError("cost", str(self.cost), CHARGED_COSTS)
        for name in ("horizon", "train_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_starts", "start_steps", "batch_size"):
            if getattr(self.start, name) < 1:
                raise ValueError(f"{name} is {getattr(self.start, name)}; it must be at least 1")
        weight = self.cost_weight
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"cost_weight is {weight}; it must be a finite number of at least 0")


def episode_config(options: Mapping[str, Any]) -> EpisodeConfig:
    """The configuration that keyword arguments of `gymnasium.make` describe.

    Raises:
        SpecError: an unknown option, with the closest known one, or an action that cannot be made.
        UnknownNameError: there is no action of a name.
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
