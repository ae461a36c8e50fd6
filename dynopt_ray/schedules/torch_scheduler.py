"""Convert schedules to torch LR schedulers."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynopt_ray.errors import CheckpointError
from dynopt_ray.schedules.base import Schedule


def to_torch(schedule: Schedule, optimizer: Optimizer) -> "ScheduleLR":
    """Make a torch scheduler that sets the optimizer's learning rate from a schedule.

    The schedule returns the *rate itself*, not a factor. The first parameter group gets the rate
    `schedule(step)`, whatever `lr` the optimizer was made with. The other groups keep the ratio
    of their initial rate to that of the first group.

    Args:
        schedule: step -> rate, finite and >= 0.
        optimizer: any torch optimizer. Its rates are set to those of step 0 at once.

    Returns:
        A scheduler to `step()` after each `optimizer.step()`. It refers to parameter groups,
        not to parameters, so it keeps working when the network is resized.

    Raises:
        TypeError: `optimizer` is not a torch optimizer.
        ValueError: the first group's initial rate is 0 and another's is not, so that their ratio
            is undefined; or the schedule returns a negative or non-finite rate.

    Example:
        >>> import torch
        >>> from dynopt_ray.schedules import step
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
        >>> scheduler = to_torch(step(0.1, gamma=0.5, period_steps=1), optimizer)
        >>> optimizer.step()
        >>> scheduler.step()
        >>> scheduler.get_last_lr()
        [0.05]
    """
    return ScheduleLR(optimizer, schedule)


class ScheduleLR(LRScheduler):
    """The scheduler that `to_torch` makes; there is no need to construct it directly.

    Attributes:
        schedule: step -> rate of the first parameter group.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """One rate per parameter group at the current step."""
        rate = float(self.schedule(self.last_epoch))
        if not math.isfinite(rate) or rate < 0:
            raise ValueError(
                f"{self.schedule!r} returns the learning rate {rate} at step {self.last_epoch}; "
                f"a rate must be finite and >= 0"
            )
        return [rate * ratio for ratio in _ratios([float(base) for base in self.base_lrs])]

    def set_rates(self) -> None:
        """Set the optimizer's rates to those of the current step, e.g. after loading its state."""
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, which `torch.load(..., weights_only=True)` loads.

        The schedule is not included: to resume, make the scheduler with the same schedule again.
        """
        return {
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "base_lrs": [float(base) for base in self.base_lrs],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned, and set the optimizer's rates accordingly.

        From then on the rates are bit for bit those of the uninterrupted run, whether the
        optimizer's own state is loaded before or after.

        Raises:
            CheckpointError: keys are missing, or the state has another number of parameter
                groups than the optimizer.
        """
        missing = {"last_epoch", "step_count", "base_lrs"} - state_dict.keys()
        if missing:
            raise CheckpointError(
                f"not the state of a ScheduleLR: it lacks {', '.join(sorted(missing))}"
            )
        num_groups = len(self.optimizer.param_groups)
        if len(state_dict["base_lrs"]) != num_groups:
            raise CheckpointError(
                f"the state belongs to an optimizer with {len(state_dict['base_lrs'])} parameter "
                f"groups; this one has {num_groups}"
            )
        self._step_count = state_dict["step_count"]
        self.base_lrs = list(state_dict["base_lrs"])
        self.last_epoch = state_dict["last_epoch"]
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = rates


def _ratios(base_lrs: list[float]) -> list[float]:
    """Each group's initial rate relative to the first group's."""
    first = base_lrs[0]
    if first == 0 and any(base_lrs):
        raise ValueError(
            f"the initial learning rates are {base_lrs}: the schedule sets the first group's "
            f"rate, and the others keep their ratio to it, which is undefined if the first rate "
            f"is 0. Give the first group a rate > 0"
        )
    return [1.0 if base == first else base / first for base in base_lrs]
