"""What callers pass to `prune` and `grow`, checked before anything is looked at."""

import itertools
import math
from collections.abc import Iterable, Mapping

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.schedules import Schedule, linear
from dynopt_ray.structure.optimizer_state import check_optimizer
from dynopt_ray.tasks import Task
from dynopt_ray.training.numbers import share, whole
from dynopt_ray.training.regrowth import Regrowth
from dynopt_ray.training.targets import Budget, Fraction, Target, Threshold


def check_task(caller: str, task: object) -> None:
    """Refuse what is no task.

    Raises:
        TypeError: that.
    """
    if not isinstance(task, Task):
        raise TypeError(
            f"{caller}: task is {task!r:.60}; pass a Task, from Task.from_arrays(…) or "
            'load_task("digits-mlp")'
        )


def check_fractions(fractions: object) -> list[float]:
    """Shares to remove, in rising order, each once.

    Raises:
        TypeError: no numbers.
        ValueError: none, or one that is not in (0, 1).
    """
    if isinstance(fractions, str | Mapping) or not isinstance(fractions, Iterable):
        raise TypeError(
            f"sensitivity: fractions is {fractions!r}; pass numbers such as (0.25, 0.5)"
        )
    checked = []
    for fraction in fractions:
        checked.append(share("sensitivity: one of fractions", fraction))
    if not checked:
        raise ValueError("sensitivity: fractions is empty; give at least one, such as 0.5")
    return sorted(set(checked))


def check_callable(name: str, value: object, wanted: str) -> None:
    """Refuse what is neither None nor can be called.

    Raises:
        TypeError: it is neither; says what is wanted.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r}; pass {wanted}")


def check_prune_target(target: object, *, granularity: str, recovery: object) -> Target:
    """The target, once it is known to be one.

    Raises:
        TypeError: no target.
        EditError: widths as the target, and something that does not go with them.
    """
    if not isinstance(target, Budget | Fraction | Threshold | Mapping):
        raise TypeError(
            f"prune: target is {target!r}; pass Budget(flops=0.5), Fraction(remove=0.5), "
            "Threshold(0.01) or {'0': 16}"
        )
    if not isinstance(target, Mapping):
        return target
    if granularity != "unit":
        raise EditError(
            f"prune: the target gives widths, which granularity={granularity!r} leaves as they "
            "are; use granularity='unit', or another target"
        )
    if recovery is not None:
        raise EditError(
            "prune: a recovery gives units back wherever that helps most, but the target says "
            "how many each group keeps; pass recovery=None, or another target"
        )
    return target


def check_grow_target(target: object) -> None:
    """Refuse what `grow` cannot aim at.

    Raises:
        TypeError: neither a budget nor a mapping.
    """
    if not isinstance(target, Budget | Mapping):
        raise TypeError(f"grow: target is {target!r}; pass Budget(params=2.0) or {{'0': 64}}")


def check_limits(budget: object) -> None:
    """Refuse a budget that widths alone do not tell the costs of.

    Raises:
        TypeError: no budget.
        ValueError: a limit on non-zero weights.
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"allocate: budget is {budget!r}; pass Budget(flops=0.5)")
    if budget.nonzero is not None:
        raise ValueError(
            f"allocate: {budget!r} limits nonzero, which depends on the units that stay and not "
            "on widths alone; limit params"
        )


def check_recovery(recovery: object) -> None:
    """Refuse what gives nothing back, a recovery's class among it.

    Raises:
        TypeError: no recovery.
    """
    fits = callable(recovery) and hasattr(recovery, "share") and not isinstance(recovery, type)
    if not (recovery is None or isinstance(recovery, Regrowth) or fits):
        raise TypeError(
            f"prune: recovery is {recovery!r}; pass Random(), Greedy(), Regrowth() or None"
        )


def check_min_widths(min_widths: object, *, caller: str = "prune") -> None:
    """Refuse least widths that are no mapping to counts.

    Raises:
        TypeError: that.
        ValueError: a negative width.
    """
    if min_widths is None:
        return
    if not isinstance(min_widths, Mapping):
        raise TypeError(
            f"{caller}: min_widths is {min_widths!r}; pass a mapping such as {{'0': 4}}"
        )
    for name, width in min_widths.items():
        whole(f"{caller}: min_widths: {name!r}", width, least=0)


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
