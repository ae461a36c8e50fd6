"""One round of pruning: score, cut, give back, retrain, compare."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynopt_ray.criteria import (
    Criterion,
    Evidence,
    Per,
    Scope,
    mean_gradients,
    unit_scores,
    weight_scores,
)
from dynopt_ray.errors import EditError, PluginError
from dynopt_ray.structure import Edit, Graph, Inputs, Mask, named_tensors
from dynopt_ray.tasks import AddedLoss, Task, TrainStats
from dynopt_ray.training.budgets import (
    Budget,
    Fraction,
    Target,
    Threshold,
    asks_latency,
    fractions_hint,
    widths_at,
)
from dynopt_ray.training.loop import (
    SCORE_ROWS,
    Attempt,
    CostAndMetrics,
    Costs,
    attempt,
    cost_and_metrics,
    sample_batches,
    undone,
)
from dynopt_ray.training.pruning.candidates import Pool
from dynopt_ray.training.pruning.patterns import Pattern
from dynopt_ray.training.pruning.recovery import Cut, Recovery
from dynopt_ray.training.pruning.regrowth import Regrowth, changed_masks, regrown
from dynopt_ray.training.pruning.selection import Selection, select, select_widths
from dynopt_ray.training.pruning.units import unit_pool
from dynopt_ray.training.pruning.weights import mask_or_ones, weight_pool
from dynopt_ray.training.retraining import Retraining

Granularity = Literal["unit", "weight"]
"""What goes: whole units, or single weights, of which a pattern may say more."""

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

# How often a choice by a latency model is measured and made again.
_CORRECTIONS = 5


@dataclass(frozen=True, eq=False)
class Pruning:
    """What all rounds of one pruning share.

    Attributes:
        graph: the traced network.
        task: what it learns.
        costs: what it costs.
        start: the network before the first round.
        target: how far to go.
        criterion: scores what may go.
        granularity: whether units or single weights go.
        scope: how scores of different groups compare.
        min_widths: group name -> fewest units to keep.
        recovery: gives back some of each cut, or None.
        calibration: inputs that a cut is compensated with, or None.
        retraining: what follows each cut, or None.
        optimizer: over the network's parameters, or None.
        generator: draws the samples to score with, and random choices.
        added_loss: what retraining adds to the loss, or None.
    """

    graph: Graph
    task: Task
    costs: Costs
    start: CostAndMetrics
    target: Target | Pattern
    criterion: Criterion
    granularity: Granularity
    scope: Scope
    min_widths: Mapping[str, int]
    recovery: Recovery | Regrowth | None
    calibration: Sequence[Inputs] | None
    retraining: Retraining | None
    optimizer: Optimizer | None
    generator: torch.Generator
    added_loss: AddedLoss | None = None

    @property
    def fills_zeros(self) -> bool:
        """Whether what follows a cut fills the zeros that no mask holds."""
        return self.calibration is not None or self.retraining is not None

    def measured(self) -> CostAndMetrics:
        """The network as it is now."""
        return cost_and_metrics(
            self.graph, self.task, self.costs, latency=asks_latency(self.target)
        )


@dataclass(frozen=True)
class Round:
    """What one round did.

    Attributes:
        num_removed: units (or weights) removed, those given back not counted.
        num_returned: how many the recovery gave back.
        cut: the edit, judged before any retraining.
        retrained: the retraining, kept if it does better than the cut alone, or always where it
            goes on through all rounds; None without it.
    """

    num_removed: int
    num_returned: int
    cut: Attempt[CostAndMetrics, None]
    retrained: Attempt[CostAndMetrics, TrainStats] | None

    @property
    def after(self) -> CostAndMetrics:
        """The network as the round left it."""
        if self.retrained is not None and self.retrained.kept:
            return self.retrained.after
        return self.cut.after


def prune_round(
    pruning: Pruning,
    *,
    share: float,
    before: CostAndMetrics,
    num_before: int = 0,
    pool: Pool | None = None,
) -> Round:
    """Go a share of the way from the start to the target.

    What a recovery gives back is chosen right after the cut and before retraining: then the
    removed weights still fit the network they return to. The cut is undone and a smaller one
    made, so they return bit for bit, with their optimizer state, and compensation starts from
    the right network.

    Args:
        pruning: what all rounds share.
        share: in (0, 1].
        before: the network as it is.
        num_before: how many rounds came before.
        pool: what may go, if it is known already.

    Raises:
        BudgetError: the target cannot be reached at all; nothing has been changed.
        DivergedError: a loss is not finite; the network is as it was before the round.
    """
    pool = make_pool(pruning) if pool is None else pool
    selection = _selected(pruning, pool, share)
    plan, num_returned = _cut_plan(pruning, pool, selection)
    cut: Attempt[CostAndMetrics, None] = attempt(
        pruning.graph,
        plan,
        judge=pruning.measured,
        accept=_always,
        before=before,
        optimizer=pruning.optimizer,
        compensate=pruning.calibration,
    )
    try:
        retrained = None
        if pruning.retraining is not None:
            retrained = _retrained(pruning, cut.after, num_before)
    except BaseException:
        if cut.receipt is not None:
            cut.receipt.undo()
        raise
    return Round(int(selection.removed.sum()) - num_returned, num_returned, cut, retrained)


def _cut_plan(pruning: Pruning, pool: Pool, selection: Selection) -> tuple[list[Edit], int]:
    """What is cut after the recovery, and how many came back."""
    removed, recovery = selection.removed, pruning.recovery
    if recovery is None or not selection.num_spare:
        return pool.plan(removed), 0
    if isinstance(recovery, Regrowth):
        return _exchanged(pruning, pool, selection), selection.num_spare
    left = pool.doable(_recovered(recovery, _as_cut(pruning, pool, selection)))
    return pool.plan(left), int(removed.sum()) - int(left.sum())


def _recovered(recovery: Recovery, cut: Cut) -> Tensor:
    """What a recovery, perhaps of the caller's own, leaves removed.

    Raises:
        PluginError: it takes away more, or gives back so much that the target is missed.
    """
    left = recovery(cut)
    wrong = None
    if not isinstance(left, Tensor) or left.dtype != torch.bool or left.shape != cut.removed.shape:
        wrong = f"{left!r:.60}, not a bool tensor {tuple(cut.removed.shape)}"
    elif bool((left & ~cut.removed).any()):
        wrong = "a removal that is no part of cut.removed"
    elif not cut.fits(left):
        wrong = "a removal that misses the target; see cut.fits"
    if wrong:
        raise PluginError(f"recovery {type(recovery).__name__} gives {wrong}")
    return left


def _exchanged(pruning: Pruning, pool: Pool, selection: Selection) -> list[Edit]:
    """The masks of a cut after as many weights as are to spare have grown back."""
    before = {n: mask_or_ones(pruning.graph.model.get_parameter(n)) for n in pool.candidates.names}
    cut = {e.parameter: e.keep for e in pool.plan(selection.removed) if isinstance(e, Mask)}
    keeps = {name: cut.get(name, keep) for name, keep in before.items()}
    with _without(pruning, pool, selection.removed):
        batches = sample_batches(pruning.task, SCORE_ROWS, pruning.generator)
        gradients = mean_gradients(pruning.graph.model, batches, pruning.task.loss)
    keeps = regrown(
        keeps,
        {name: before[name] & ~keep for name, keep in keeps.items()},
        gradients,
        number=selection.num_spare,
        scope=pruning.scope,
    )
    return list(changed_masks(keeps, before))


def make_pool(pruning: Pruning) -> Pool:
    """Everything that may go, ranked by its scores on some of the training data."""
    batches = sample_batches(pruning.task, SCORE_ROWS, pruning.generator)
    graph, criterion, loss = pruning.graph, pruning.criterion, pruning.task.loss
    compares = getattr(criterion, "compares_across", False)
    if pruning.granularity == "weight":
        pattern = pruning.target if isinstance(pruning.target, Pattern) else None
        only = pattern.dims(graph, Evidence(graph).weights) if pattern else None
        scores = weight_scores(graph, criterion, batches, loss=loss, only=only)
        cost = pruning.costs.now(latency=asks_latency(pruning.target))
        per: Per = "one" if compares else "length"
        return weight_pool(
            graph,
            cost,
            scores,
            pruning.scope,
            per=per,
            pattern=pattern,
            lasting=pruning.fills_zeros,
        )
    scores = unit_scores(graph, criterion, batches, loss=loss)
    return unit_pool(
        pruning.graph,
        pruning.costs,
        scores,
        pruning.scope,
        per="one" if compares else "mean",
        start_widths=pruning.start.widths,
        min_widths=pruning.min_widths,
        lasting=pruning.fills_zeros,
    )


def checked_pool(pruning: Pruning, *, num_rounds: int) -> Pool:
    """What may go from the network as it is, once it is known that the target can be reached.

    Raises:
        BudgetError: it cannot be reached.
        EditError: it would remove nothing, in later rounds neither.
    """
    pool = make_pool(pruning)
    if bool(_selected(pruning, pool, 1.0).removed.any()):
        return pool
    target = pruning.target
    if not len(pool.candidates):
        raise EditError(f"{target!r} removes nothing: the network has no {pool.noun} that may go")
    if isinstance(target, Threshold):
        if num_rounds > 1 and pruning.retraining is not None:
            return pool  # retraining may bring scores below it
        raise EditError(f"{target!r} removes nothing: {_smallest_score(pool)}")
    if isinstance(target, Fraction):
        per_layer = f"the {pool.noun} of each layer"
        whole = per_layer if pruning.scope == "layer" else f"{len(pool.candidates)} {pool.noun}"
        gone = pool.candidates.num_gone
        raise EditError(
            f"{target!r} removes nothing: it is less than one of {whole}"
            + (f" beside the {gone} that are masked already" if gone else "")
            + ". Remove a larger fraction"
        )
    if isinstance(target, Pattern):
        raise EditError(f"granularity {str(target)!r}: the network's weights are in it already")
    raise EditError(
        f"{target!r} removes nothing: the network of {pruning.start.cost} is within it already. "
        f"Lower the target{fractions_hint(target)}"
    )


def _smallest_score(pool: Pool) -> str:
    """Why no score is below a threshold."""
    candidates = pool.candidates
    if not len(candidates.order):
        return f"every one of {len(candidates)} {pool.noun} has to stay"
    smallest = candidates.scores[candidates.order].min().item()
    return (
        f"the smallest score of the {pool.noun} that may go is {smallest:.4g}. Raise the threshold"
    )


def _selected(pruning: Pruning, pool: Pool, share: float) -> Selection:
    target = pruning.target
    if isinstance(target, Mapping):
        return select_widths(pool, widths_at(pruning.graph, pruning.start.widths, target, share))
    for _ in range(_CORRECTIONS):
        selection = select(
            pool,
            target,
            scope=pruning.scope,
            start=pruning.start.cost,
            share=share,
            spare_fraction=0.0 if pruning.recovery is None else pruning.recovery.share,
            earlier=isinstance(pruning.recovery, Regrowth),
        )
        if not isinstance(target, Budget) or target.latency_ms is None:
            break
        # A latency is chosen by a model and then measured.
        latency_ms = pruning.costs.latency_ms_after(pool.plan(selection.removed))
        if latency_ms <= target.limits(pruning.start.cost, share)["latency_ms"]:
            break
    return selection


def _retrained(
    pruning: Pruning, before: CostAndMetrics, num_before: int
) -> Attempt[CostAndMetrics, TrainStats]:
    assert pruning.retraining is not None
    restart = pruning.retraining.restart
    assert pruning.optimizer is not None
    return attempt(
        pruning.graph,
        [],
        judge=pruning.measured,
        accept=lambda old, new: not restart or new.validation.smooth >= old.validation.smooth,
        before=before,
        recover=partial(
            pruning.retraining,
            pruning.task,
            pruning.graph.model,
            pruning.optimizer,
            generator=pruning.generator,
            added_loss=pruning.added_loss,
            num_before=num_before,
        ),
        optimizer=pruning.optimizer,
        generators=[pruning.generator],
    )


def _as_cut(pruning: Pruning, pool: Pool, selection: Selection) -> Cut:
    """A selection as recoveries see it."""
    model = pruning.graph.model

    def loss(removed: Tensor) -> float:
        with _without(pruning, pool, removed):
            return pruning.task.evaluate(model).loss

    def gains(removed: Tensor) -> Tensor:
        held = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
        with _without(pruning, pool, removed):
            cut = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
        tensors = pool.embedded(removed, held, cut)
        validation = pruning.task.batches("validation")
        gradients = mean_gradients(model, validation, pruning.task.loss, tensors=tensors)
        return pool.gains(gradients, held)

    return Cut(
        candidates=pool.candidates,
        removed=selection.removed,
        num_spare=selection.num_spare,
        fits=selection.fits,
        loss=loss,
        gains=gains,
        generator=pruning.generator,
    )


@contextmanager
def _without(pruning: Pruning, pool: Pool, removed: Tensor) -> Iterator[None]:
    """The network without some candidates, for a while."""
    with undone(pruning.graph):
        if plan := pool.plan(removed):
            pruning.graph.apply(plan, compensate=pruning.calibration)
        yield


def _always(*_: CostAndMetrics) -> bool:
    return True
