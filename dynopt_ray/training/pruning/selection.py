"""How much to remove: the shortest prefix of the ranking that reaches a target."""

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
"""Whether a removal reaches a target."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What to remove.

    Attributes:
        removed: bool tensor, one entry per candidate.
        num_spare: how many of them a recovery may give back.
        fits: whether another removal would still reach the target.
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
    """The least important candidates, as many as the target wants.

    The cost falls with every candidate removed, so the shortest sufficient prefix of the ranking
    is found by bisection. The last one may have been dearer than needed; then what would fit is
    given back, most important first, until no group can get its next unit back. So a budget is
    missed by less than the cheapest of these.

    Args:
        pool: what may go.
        target: how far to go; a pattern takes all that the pool lets go.
        scope: whether `Fraction` counts in each layer or overall.
        start: what fractions of costs are of.
        share: how much of the way from the start to the target, in (0, 1].
        spare_fraction: the part of what goes, or of what stays if that is less, that a recovery
            will give back. Budgets and fractions are exceeded by it, so that they hold after the
            recovery.
        earlier: whether what went in earlier rounds may come back, too.

    Raises:
        BudgetError: the target cannot be reached.
    """
    if isinstance(target, Pattern):
        # What has to stay is no part of the order, so all of it goes in the end.
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
    """The least important of each group, as many as leave it a width.

    Args:
        pool: the units there are.
        widths: group name -> units to keep; groups not named keep theirs.
    """
    sizes = dict(zip(pool.candidates.names, pool.candidates.sizes, strict=True))
    removed = pool.candidates.least({name: sizes[name] - width for name, width in widths.items()})
    return Selection(removed, 0, lambda other: torch.equal(other, removed))


def _num_spare(
    candidates: Candidates, num_removed: int, spare_fraction: float, num_gone: int
) -> int:
    """How many a recovery gives back: at least one, if it gives back any and any is gone."""
    if not spare_fraction or not num_removed + num_gone:
        return 0
    return max(1, int(spare_fraction * min(num_removed + num_gone, len(candidates) - num_removed)))


def _within(pool: Pool, budget: Budget, start: Cost, share: float) -> Fits:
    """Whether a removal is within the limits."""
    limits = budget.limits(start, share)

    def fits(removed: Tensor) -> bool:
        cost = pool.cost(removed, budget.kinds)
        return all(cost[kind] <= limit * (1 + ROUNDING) for kind, limit in limits.items())

    return fits


def _at_least(pool: Pool, number: int) -> Fits:
    return lambda removed: int(pool.doable(removed).sum()) >= number


def _shortest(candidates: Candidates, fits: Fits) -> int | None:
    """Length of the shortest prefix that fits; None if all is not enough."""
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
    """Give back what fits, most important first.

    A unit costs more the wider the rest is, so a unit that once could not come back never can
    later. The group then gets none of its others either: they cost the same, or, in non-zero
    weights, nearly so, and each trial takes a count over the whole network.
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
    """How many candidates a fraction of all that were there at the start are."""
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
    """That a budget cannot be met, with the lowest costs and what stands in the way."""
    missed = [
        f"the lowest reachable {kind} is {lowest[kind]:g} "
        f"({lowest[kind] / max(getattr(start, kind) or 0, 1e-12):.3g} of the start), above the "
        f"limit of {limit:g}; {obstacles(kind)}"
        for kind, limit in budget.limits(start).items()
        if lowest[kind] > limit
    ]
    return BudgetError(f"{budget} cannot be met: {'. '.join(missed)}.")
