"""Checks of the arguments of `grow`."""

from collections.abc import Mapping

from dynopt_ray.training.budgets import Budget


def check_grow_target(target: object) -> None:
    """Refuse anything that is not a target of `grow`.

    Raises:
        TypeError: the target is neither a budget nor a mapping.
    """
    if not isinstance(target, Budget | Mapping):
        raise TypeError(f"grow: target is {target!r}; pass Budget(params=2.0) or {{'0': 64}}")
