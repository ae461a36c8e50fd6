"""Checks of the arguments of `prune`."""

from collections.abc import Mapping

from dynopt_ray.errors import EditError
from dynopt_ray.training.budgets import Budget, Fraction, Target, Threshold
from dynopt_ray.training.numbers import whole
from dynopt_ray.training.pruning.regrowth import Regrowth


def check_prune_target(target: object, *, granularity: str, recovery: object) -> Target:
    """Check a target of `prune` and return it.

    Raises:
        TypeError: the argument is not a target.
        EditError: the target gives widths, but granularity is not "unit" or a recovery is given.
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
            f"prune: the target gives widths, which granularity={granularity!r} does not change; "
            "use granularity='unit', or another target"
        )
    if recovery is not None:
        raise EditError(
            "prune: a recovery gives units back wherever that helps most, but the target says "
            "how many each group keeps; pass recovery=None, or another target"
        )
    return target


def check_recovery(recovery: object) -> None:
    """Refuse anything that is not a recovery, e.g. the class `Random` instead of `Random()`.

    Raises:
        TypeError: the argument is not a recovery.
    """
    fits = callable(recovery) and hasattr(recovery, "share") and not isinstance(recovery, type)
    if not (recovery is None or isinstance(recovery, Regrowth) or fits):
        raise TypeError(
            f"prune: recovery is {recovery!r}; pass Random(), Greedy(), Regrowth() or None"
        )


def check_min_widths(min_widths: object, *, caller: str = "prune") -> None:
    """Refuse `min_widths` that do not map names to counts.

    Raises:
        TypeError: the argument is not a mapping, or a width is not a whole number.
        ValueError: a width is negative.
    """
    if min_widths is None:
        return
    if not isinstance(min_widths, Mapping):
        raise TypeError(
            f"{caller}: min_widths is {min_widths!r}; pass a mapping such as {{'0': 4}}"
        )
    for name, width in min_widths.items():
        whole(f"{caller}: min_widths: {name!r}", width, least=0)
