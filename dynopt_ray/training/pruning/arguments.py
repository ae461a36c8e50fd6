"""The arguments of `prune`, checked before anything is looked at."""

from collections.abc import Mapping

from dynopt_ray.errors import EditError
from dynopt_ray.training.budgets import Budget, Fraction, Target, Threshold
from dynopt_ray.training.numbers import whole
from dynopt_ray.training.pruning.regrowth import Regrowth


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
