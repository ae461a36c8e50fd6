"""Checks of the arguments that several functions of this package take."""

import itertools
import math

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError, short
from dynopt_ray.schedules import Schedule, linear
from dynopt_ray.structure import check_optimizer
from dynopt_ray.tasks import Task

MOST_ROUNDS = 10_000
"""The most rounds of `prune` and `grow`, each of which measures the network."""


def check_is_task(caller: str, task: object) -> None:
    """Refuse anything that is not a task.

    Raises:
        TypeError: `task` is not a `Task`.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{caller}: task is {task!r:.60}; pass a Task, from Task.from_arrays(…) or "
            'load_task("digits-mlp")'
        )


def check_callable(name: str, value: object, wanted: str) -> None:
    """Refuse a value that is neither callable nor None.

    Args:
        name: what to call the value in the message.
        value: the value to check.
        wanted: what the message tells the caller to pass instead.

    Raises:
        TypeError: the value is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r}; pass {wanted}")


def check_follows(optimizer: Optimizer | None, model: nn.Module, *, trains: bool) -> None:
    """Refuse an optimizer that cannot follow the edits of a network.

    Called before the first round, so that a long run does not fail in the middle.

    Args:
        optimizer: the optimizer; None passes.
        model: the network.
        trains: whether the caller will train the network, which needs a trainable parameter.

    Raises:
        EditError: `check_optimizer` refuses the optimizer, or the network is to be trained but
            all of its parameters are frozen.
        TypeError: a list of optimizers.
    """
    if trains and not any(p.requires_grad for p in model.parameters()):
        raise EditError(
            f"every parameter of {type(model).__name__} is frozen, so there is nothing to train; "
            "call requires_grad_() on some"
        )
    if isinstance(optimizer, list | tuple):
        raise TypeError(
            f"{len(optimizer)} optimizers are given, but training uses exactly one; give it all "
            "parameters, in groups if their options differ: Adam([{'params': …, 'lr': …}, …])"
        )
    if optimizer is not None:
        check_optimizer(optimizer, model)


def round_shares(caller: str, rounds: int, schedule: Schedule | None) -> list[float]:
    """Return, for each round, the fraction of the way to the target that it reaches.

    Args:
        caller: the public function, for messages.
        rounds: number of rounds, at least 1.
        schedule: round (1 … rounds) -> fraction. Default: equal steps.

    Raises:
        TypeError: the schedule is not callable.
        ValueError: there are too many rounds, or the fractions do not rise from above 0 to 1.
    """
    if rounds > MOST_ROUNDS:
        raise ValueError(f"{caller}: {rounds} rounds are too many; the most are {MOST_ROUNDS:,}")
    check_callable(f"{caller}: schedule", schedule, "a function of the round, or None")
    wanted = schedule or linear(0.0, num_steps=rounds, final=1.0)
    shares = [float(wanted(number)) for number in range(1, rounds + 1)]
    rising = all(a <= b for a, b in itertools.pairwise([0.0, *shares]))
    if not rising or shares[0] <= 0 or not math.isclose(shares[-1], 1.0):
        raise ValueError(
            f"{caller}: the schedule gives the shares {short(shares)} for rounds 1 to {rounds}; "
            f"they must rise to 1, e.g. polynomial(0.0, num_steps={rounds}, power=3, final=1.0)"
        )
    return shares
