"""The settings of DQN training: plain data, checked before anything starts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dynopt_ray.policies.evaluation import ENVIRONMENT


@dataclass(frozen=True)
class DQNSettings:
    """How a policy is trained with DQN.

    Attributes:
        env_id: a Gymnasium id with `vector_entry_point`, whose observations are
            `Dict(observations, action_mask)`.
        env_kwargs: keyword arguments of the environment.
        num_steps: total number of environment steps.
        num_envs: number of environments that advance together in one process.
        num_env_runners: number of processes that sample. With 0 the main process samples, which is
            best on few cores.
        num_learners: number of processes that learn. With 0 the main process learns.
        gpus_per_env_runner: GPUs of each process that samples: at most 1, or 0. With 0, such a
            process sees none; the main process may use what it sees.
        gpus_per_learner: GPUs of each process that learns: at most 1, or 0. With 0 it learns on the
            CPU, and so does the main process.
        warmup_steps: number of environment steps before learning starts.
        updates_per_step: gradient steps per round. In a round each environment takes one step.
        batch_size: transitions per gradient step.
        learning_rate: learning rate of Adam; decreases linearly to a tenth of this.
        discount: discount factor γ, in (0, 1].
        n_step: number of rewards summed before bootstrapping; at most the horizon.
        target_rate: fraction of the online network that is mixed into the target network at each
            update, in (0, 1].
        averaging_fraction: the resulting policy is the average of the online network over about
            this fraction of training, in (0, 1]. Single networks vary much more.
        epsilon: fraction of random actions at the end of training, in (0, 1].
        epsilon_start: the fraction at the start, from which it decreases linearly, in (0, 1].
        epsilon_fraction: fraction of all steps during which it decreases, in (0, 1].
        temperature: how random actions are drawn: with a probability proportional to
            exp(Q / temperature), so that those that seem better are tried more often. None draws
            them uniformly.
        capacity: number of transitions in the replay.
        priority: exponent α of prioritized replay.
        priority_correction: exponent β of prioritized replay.
        hidden: widths of the hidden layers that value and advantages share.
        head: width of the hidden layer that value and advantages each have for themselves.
        save_every_steps: number of environment steps after which all episodes restart and, if
            there is a directory, everything is saved. Episodes restart even without a directory,
            so that saving does not change what is learned.
        seed: seed of all random choices.

    Raises:
        ValueError: a number is out of its range.
    """

    env_id: str = ENVIRONMENT
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int = 37_000
    num_envs: int = 32
    num_env_runners: int = 0
    num_learners: int = 0
    gpus_per_env_runner: float = 0
    gpus_per_learner: float = 0
    warmup_steps: int = 1_000
    updates_per_step: int = 8
    batch_size: int = 128
    learning_rate: float = 5e-4
    discount: float = 0.99
    n_step: int = 4
    target_rate: float = 0.005
    averaging_fraction: float = 0.05
    epsilon: float = 0.05
    epsilon_start: float = 1.0
    epsilon_fraction: float = 0.5
    temperature: float | None = None
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
            "epsilon_start",
            "epsilon_fraction",
        ):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in (0, 1]")
        for name in ("gpus_per_env_runner", "gpus_per_learner"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {list(self.hidden)}; give at least one width, each >= 1")

    def epsilon_at(self, num_steps: int) -> float:
        """Return the fraction of random actions after `num_steps` environment steps."""
        progress = min(1.0, num_steps / (self.epsilon_fraction * self.num_steps))
        return self.epsilon_start + (self.epsilon - self.epsilon_start) * progress

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain values."""
        return {**asdict(self), "hidden": list(self.hidden)}
