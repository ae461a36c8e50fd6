"""Settings of policy training: plain data, checked before anything starts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dynopt_ray.policies.evaluation import ENVIRONMENT


@dataclass(frozen=True)
class DQNSettings:
    """How a policy is trained.

    Attributes:
        env_id: a Gymnasium id with `vector_entry_point`, whose observations are
            `Dict(observations, action_mask)`.
        env_kwargs: what it is made with.
        num_steps: environment steps in all.
        num_envs: environments that advance together in one process.
        num_env_runners: processes that sample; 0 samples in this one, which is best on few cores.
        num_learners: processes that learn; 0 learns in this one.
        warmup_steps: environment steps before learning starts.
        updates_per_step: gradient steps per round, in which each environment takes one step.
        batch_size: transitions per gradient step.
        learning_rate: of Adam; falls linearly to a tenth.
        discount: γ.
        n_step: rewards summed before bootstrapping; at most the horizon.
        target_rate: share of the online network that the target network takes over per update.
        averaging_fraction: the policy handed out is the average of the online network over about
            this share of training. Single networks of the course differ much more.
        epsilon: share of random actions at the end; it falls linearly from 1.
        epsilon_fraction: share of all steps over which it falls.
        capacity: transitions in the replay.
        priority: α of prioritized replay.
        priority_correction: β of prioritized replay.
        hidden: widths of the layers that value and advantages share.
        head: width of their own hidden layer.
        save_every_steps: environment steps after which all episodes begin anew and, where there
            is a directory, everything is saved; so saving does not change what is learned.
        seed: of everything.

    Raises:
        ValueError: a number out of its range.
    """

    env_id: str = ENVIRONMENT
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int = 37_000
    num_envs: int = 32
    num_env_runners: int = 0
    num_learners: int = 0
    warmup_steps: int = 1_000
    updates_per_step: int = 8
    batch_size: int = 128
    learning_rate: float = 5e-4
    discount: float = 0.99
    n_step: int = 4
    target_rate: float = 0.005
    averaging_fraction: float = 0.05
    epsilon: float = 0.05
    epsilon_fraction: float = 0.5
    capacity: int = 50_000
    priority: float = 0.5
    priority_correction: float = 0.4
    hidden: tuple[int, ...] = (128, 128)
    head: int = 64
    save_every_steps: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "env_kwargs", dict(self.env_kwargs))
        for name in (
            "num_steps",
            "num_envs",
            "updates_per_step",
            "batch_size",
            "n_step",
            "capacity",
            "head",
            "save_every_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            "num_env_runners",
            "num_learners",
            "warmup_steps",
            "priority",
            "priority_correction",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in (
            "discount",
            "target_rate",
            "averaging_fraction",
            "epsilon",
            "epsilon_fraction",
        ):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in (0, 1]")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {list(self.hidden)}; give at least one width, each >= 1")

    def epsilon_at(self, num_steps: int) -> float:
        """Share of random actions after so many environment steps."""
        fallen = min(1.0, num_steps / (self.epsilon_fraction * self.num_steps))
        return 1 + (self.epsilon - 1) * fallen

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return {**asdict(self), "hidden": list(self.hidden)}
