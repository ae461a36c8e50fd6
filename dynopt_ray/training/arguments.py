"""What callers pass to `prune` and `grow`, checked before anything is looked at."""

import itertools
import math

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.schedules import Schedule, linear
from dynopt_ray.structure import check_optimizer
from dynopt_ray.tasks import Task


def check_is_task(caller: str, task: object) -> None:
    """Refuse what is no task.

    Raises:
        TypeError: that.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{caller}: task is {task!r:.60}; pass a Task, from Task.from_arrays(…) or "
            'load_task("digits-mlp")'
        )


def check_callable(name: str, value: object, wanted: str) -> None:
    """Refuse what is neither None nor can be called.

    Raises:
        TypeError: it is neither; says what is wanted.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r}; pass {wanted}")


def check_follows(optimizer: Optimizer | None, model: nn.Module, *, trains: bool) -> None:
    """Refuse an optimizer that cannot follow a network, before the first round meets it.

    Raises:
        EditError: see `check_optimizer`; or it shall train, and there is nothing to.
        TypeError: several optimizers.
    """
    if trains and not any(p.requires_grad for p in model.parameters()):
        raise EditError(
            f"every parameter of {type(model).__name__} is frozen, so there is nothing to train; "
            "call requires_grad_() on some"
        )
    if isinstance(optimizer, list | tuple):
        raise TypeError(
            f"{len(optimizer)} optimizers are given, but one trains here; give it all parameters, "
            "in groups where their options differ: Adam([{'params': …, 'lr': …}, …])"
        )
    if optimizer is not None:
        check_optimizer(optimizer, model)


def round_shares(caller: str, rounds: int, schedule: Schedule | None) -> list[float]:
    """How far along the way each round gets.

    Raises:
        TypeError: no schedule.
        ValueError: shares that do not rise from above 0 to 1.
    """
    check_callable(f"{caller}: schedule", schedule, "a function of the round, or None")
    wanted = schedule or linear(0.0, num_steps=rounds, final=1.0)
    shares = [float(wanted(number)) for number in range(1, rounds + 1)]
    rising = all(a <= b for a, b in itertools.pairwise([0.0, *shares]))
    if not rising or shares[0] <= 0 or not math.isclose(shares[-1], 1.0):
        raise ValueError(
            f"{caller}: the schedule gives the shares {shares} for rounds 1 to {rounds}; they must "
            f"rise to 1, e.g. polynomial(0.0, num_steps={rounds}, power=3, final=1.0)"
        )
    return shares
