"""Selection: how many of the least important candidates to remove to reach a target.

For a budget, the shortest sufficient prefix of the ranking by importance is removed. It is found by
bisection: removing more never costs more, so a prefix fits if and only if it is at least as long as
the shortest one that does. The number of cost computations is only logarithmic in the number of
candidates. Units differ in cost, so the last ones of the prefix may save more than needed. Then
units are given back while the budget still holds, most important first.

A fraction or a pattern also removes a prefix, whose length follows by counting. A threshold removes
all candidates with lower scores, and target widths remove the least important units of each group.

If a recovery will give back a part of the cut, budgets and fractions are exceeded by this part
first, so that they hold after the recovery.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria import Scope
from dynopt_ray.errors import BudgetError
from dynopt_ray.structure import Cost, CostKind
from dynopt_ray.training.budgets import ROUNDING, Budget, Fraction, Threshold, Widths
from dynopt_ray.training.pruning.candidates import Candidates, Pool
from dynopt_ray.training.pruning.patterns import Pattern

Fits = Callable[[Tensor], bool]
"""Removal -> whether it reaches a target."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The candidates selected for removal.

    Attributes:
        removed: bool tensor, one entry per candidate.
        num_spare: number of candidates that a recovery may give back.
        fits: removal -> whether it still reaches the target.
    """

    removed: Tensor
    num_spare: int
    fits: Fits


def select(
    pool: Pool,
    target: Budget | Fraction | Threshold | Pattern,
    *,
    scope: Scope,
    start: Cost,
    share: float = 1.0,
    spare_fraction: float = 0.0,
    earlier: bool = False,
) -> Selection:
    """Select as many of the least important candidates as the target requires.

    For a budget without recovery, units are given back until no group can get back its next unit.
    The unused part of the budget is then smaller than the cost of the cheapest of these units.

    Args:
        pool: the candidates for removal.
        target: how far to prune. A pattern finally removes everything that the pool allows.
        scope: whether a `Fraction` applies to each layer or to the whole network.
        start: the cost at the start, which fractions refer to.
        share: fraction of the way from the start to the target, in (0, 1].
        spare_fraction: fraction that a recovery will give back: of what is removed, or of what
            stays if that is less. Budgets and fractions are exceeded by it, so that they hold
            after the recovery.
        earlier: whether candidates removed in earlier rounds may be given back too.

    Raises:
        BudgetError: the target cannot be reached.
    """
    if isinstance(target, Pattern):
        # `order` does not contain weights that have to stay, so the last round removes all of it.
        candidates = pool.candidates
        total = (len(candidates) + candidates.num_gone) * (target.of - target.keep) / target.of
        num_cut = max(0, len(candidates.order) - math.floor((1 - share) * total + ROUNDING))
        return Selection(candidates.first(num_cut), 0, lambda _: True)
    num_gone = pool.candidates.num_gone if earlier else 0
    if isinstance(target, Threshold):
        below = pool.candidates.scores < target.value * share
        removed = pool.doable(below & pool.candidates.first(len(pool.candidates.order)))
        num_spare = _num_spare(pool.candidates, int(removed.sum()), spare_fraction, num_gone)
        return Selection(removed, num_spare, lambda _: True)
    if isinstance(target, Budget):
        fits = _within(pool, target, start, share)
        needed = _shortest(pool.candidates, fits)
        if needed is None:
            lowest = pool.cost(pool.candidates.first(len(pool.candidates)), target.kinds)
            raise unreachable(target, start, lowest, obstacles=pool.obstacles)
    else:
        needed = _count(pool, target, scope, share)
        fits = _at_least(pool, int(pool.doable(pool.candidates.first(needed)).sum()))
    num_spare = _num_spare(pool.candidates, needed, spare_fraction, num_gone)
    num_cut = min(needed + num_spare, len(pool.candidates.order))
    removed = pool.candidates.first(num_cut)
    if isinstance(target, Budget) and not spare_fraction and not pool.is_even:
        removed = _filled(pool.candidates, removed, fits)
    return Selection(pool.doable(removed), num_cut - needed, fits)


def select_widths(pool: Pool, widths: Widths) -> Selection:
    """Select the least important units of each group so that it keeps a given width.

    Args:
        pool: the units of the network.
        widths: group name -> number of units to keep. Groups that are not named keep their width.
    """
    sizes = dict(zip(pool.candidates.names, pool.candidates.sizes, strict=True))
    removed = pool.candidates.least({name: sizes[name] - width for name, width in widths.items()})
    return Selection(removed, 0, lambda other: torch.equal(other, removed))


def _num_spare(
    candidates: Candidates, num_removed: int, spare_fraction: float, num_gone: int
) -> int:
    """Return how many candidates a recovery gives back: at least one, if any can be given back."""
    if not spare_fraction or not num_removed + num_gone:
        return 0
    return max(1, int(spare_fraction * min(num_removed + num_gone, len(candidates) - num_removed)))


def _within(pool: Pool, budget: Budget, start: Cost, share: float) -> Fits:
    """Return a function that tells whether a removal is within the limits of a budget."""
    limits = budget.limits(start, share)

    def fits(removed: Tensor) -> bool:
        cost = pool.cost(removed, budget.kinds)
        return all(cost[kind] <= limit * (1 + ROUNDING) for kind, limit in limits.items())

    return fits


def _at_least(pool: Pool, number: int) -> Fits:
    return lambda removed: int(pool.doable(removed).sum()) >= number


def _shortest(candidates: Candidates, fits: Fits) -> int | None:
    """Return the length of the shortest prefix that fits, or None if even the longest does not."""
    low, high = 0, len(candidates.order)
    if not fits(candidates.first(high)):
        return None
    while low < high:
        middle = (low + high) // 2
        if fits(candidates.first(middle)):
            high = middle
        else:
            low = middle + 1
    return high


def _filled(candidates: Candidates, removed: Tensor, fits: Fits) -> Tensor:
    """Give back candidates that fit, most important first.

    A unit costs more the wider the rest of the network is, so a unit that does not fit once will
    not fit later. Its group then gets back no other unit either: these cost the same (or nearly the
    same, in non-zero weights), and each trial counts over the whole network.
    """
    removed = removed.clone()
    blocked: set[int] = set()
    order = candidates.order
    for item in reversed(order[removed[order]].tolist()):
        owner = int(candidates.owner[item])
        if owner in blocked:
            continue
        removed[item] = False
        if not fits(removed):
            removed[item] = True
            blocked.add(owner)
        if len(blocked) == len(candidates.names):
            break
    return removed


def _count(pool: Pool, target: Fraction, scope: Scope, share: float) -> int:
    """Return how many candidates to remove now to reach a fraction of those at the start."""
    candidates = pool.candidates
    fraction = target.remove * share
    if scope == "layer":
        ranks = candidates.ranked[candidates.order]
        return int((ranks <= fraction + ROUNDING).sum())
    total = len(candidates) + candidates.num_gone
    wanted = max(0, math.floor(fraction * total + ROUNDING) - candidates.num_gone)
    if wanted > len(candidates.order):
        raise BudgetError(
            f"{target} is {wanted + candidates.num_gone} of {total} {pool.noun}, but only "
            f"{len(candidates.order) + candidates.num_gone} can go: each of "
            f"{', '.join(map(repr, candidates.names))} keeps some. Remove a smaller fraction"
        )
    return wanted


def unreachable(
    budget: Budget,
    start: Cost,
    lowest: Mapping[CostKind, float],
    *,
    obstacles: Callable[[CostKind], str],
) -> BudgetError:
    """Return the error for a budget that cannot be met, with the lowest costs and obstacles."""
    missed = [
        f"the lowest reachable {kind} is {lowest[kind]:g} "
        f"({lowest[kind] / max(getattr(start, kind) or 0, 1e-12):.3g} of the start), above the "
        f"limit of {limit:g}; {obstacles(kind)}"
        for kind, limit in budget.limits(start).items()
        if lowest[kind] > limit
    ]
    return BudgetError(f"{budget} cannot be met: {'. '.join(missed)}.")
