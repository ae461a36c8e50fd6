"""One round of pruning: score, cut, recover, retrain, compare."""

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
    first_within,
    fractions_hint,
    measured_choices,
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
"""What is removed: whole units, or single weights. A pattern such as "2:4" removes weights."""

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


@dataclass(frozen=True, eq=False)
class Pruning:
    """The data that all rounds of one `prune` share.

    Attributes:
        graph: the traced network.
        task: what it learns.
        costs: the costs of the network.
        start: the network before the first round.
        target: how far to prune.
        criterion: scores the candidates for removal.
        granularity: whether units or single weights are removed.
        scope: how scores of different groups are compared.
        min_widths: group name -> fewest units to keep.
        recovery: gives back a part of each cut; None for no recovery.
        calibration: batches of inputs for compensation; None for no compensation.
        retraining: the retraining after each cut; None for no retraining.
        optimizer: the optimizer over the network's parameters, or None.
        generator: draws the samples for scoring, and makes random choices.
        added_loss: a loss that retraining adds to the task's, or None.
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
        """Whether compensation or retraining fills unmasked zeros after a cut."""
        return self.calibration is not None or self.retraining is not None

    def measured(self) -> CostAndMetrics:
        """Measure the present network."""
        return cost_and_metrics(
            self.graph, self.task, self.costs, latency=asks_latency(self.target)
        )


@dataclass(frozen=True)
class Round:
    """The result of one round.

    Attributes:
        num_removed: number of units (or weights) removed, without those given back.
        num_returned: number of units (or weights) that the recovery gave back.
        cut: the attempt to cut, judged before any retraining.
        retrained: the attempt to retrain; None without retraining. It is kept if it does at least
            as well as the cut alone, or always if its schedule continues through all rounds.
    """

    num_removed: int
    num_returned: int
    cut: Attempt[CostAndMetrics, None]
    retrained: Attempt[CostAndMetrics, TrainStats] | None

    @property
    def after(self) -> CostAndMetrics:
        """The network at the end of the round."""
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
    """Prune to a fraction of the way from the start to the target.

    A recovery chooses what to give back before retraining, because the removed weights then still
    fit the network. It only tries cuts; a single smaller cut is made afterwards. So what is given
    back keeps its values and optimizer state, and compensation starts from the uncut network.

    Args:
        pruning: the data that all rounds share.
        share: fraction of the way to the target, in (0, 1].
        before: the present network.
        num_before: number of earlier rounds.
        pool: the candidates for removal. Default: scored now.

    Raises:
        BudgetError: the target cannot be reached. Nothing has been changed.
        DivergedError: a loss is not finite. The network is as it was before the round.
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
    """Return the plan of the cut after recovery, and the number of candidates given back."""
    removed, recovery = selection.removed, pruning.recovery
    if recovery is None or not selection.num_spare:
        return pool.plan(removed), 0
    if isinstance(recovery, Regrowth):
        return _exchanged(pruning, pool, selection), selection.num_spare
    left = pool.doable(_recovered(recovery, _as_cut(pruning, pool, selection)))
    return pool.plan(left), int(removed.sum()) - int(left.sum())


def _recovered(recovery: Recovery, cut: Cut) -> Tensor:
    """Call a recovery (perhaps the user's own), check its result, and return what stays removed.

    Raises:
        PluginError: the result is not a removal, removes more than the cut, or misses the target.
    """
    left = recovery(cut)
    wrong = None
    if not isinstance(left, Tensor) or left.dtype != torch.bool or left.shape != cut.removed.shape:
        wrong = f"{left!r:.60}, not a bool tensor {tuple(cut.removed.shape)}"
    elif bool((left & ~cut.removed).any()):
        wrong = "a removal that is not part of cut.removed"
    elif not cut.fits(left):
        wrong = "a removal that misses the target; see cut.fits"
    if wrong:
        raise PluginError(f"recovery {type(recovery).__name__} gives {wrong}")
    return left


def _exchanged(pruning: Pruning, pool: Pool, selection: Selection) -> list[Edit]:
    """Return the masks after a cut and after `selection.num_spare` weights have been regrown."""
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
    """Score the candidates for removal on a sample of the training data and rank them."""
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
    """Return the candidates for removal, after checking that the target can be reached.

    Raises:
        BudgetError: the target cannot be reached.
        EditError: the target would remove nothing, not even in later rounds.
    """
    pool = make_pool(pruning)
    if bool(_selected(pruning, pool, 1.0).removed.any()):
        return pool
    target = pruning.target
    if not len(pool.candidates):
        raise EditError(f"{target!r} removes nothing: the network has no {pool.noun} that may go")
    if isinstance(target, Threshold):
        if num_rounds > 1 and pruning.retraining is not None:
            return pool  # retraining may lower scores below the threshold
        raise EditError(f"{target!r} removes nothing: {_smallest_score(pool)}")
    if isinstance(target, Fraction):
        per_layer = f"the {pool.noun} of each layer"
        whole = per_layer if pruning.scope == "layer" else f"{len(pool.candidates)} {pool.noun}"
        gone = pool.candidates.num_gone
        raise EditError(
            f"{target!r} removes nothing: it is less than one of {whole}"
            + (f" in addition to the {gone} that are masked already" if gone else "")
            + ". Remove a larger fraction"
        )
    if isinstance(target, Pattern):
        raise EditError(f"granularity {str(target)!r}: the network's weights follow it already")
    raise EditError(
        f"{target!r} removes nothing: the network is within it already. "
        f"Lower the target{fractions_hint(target)}"
    )


def _smallest_score(pool: Pool) -> str:
    """Say why no score is below a threshold."""
    candidates = pool.candidates
    if not len(candidates.order):
        return f"all {len(candidates)} {pool.noun} have to stay"
    smallest = candidates.scores[candidates.order].min().item()
    return (
        f"the smallest score of the {pool.noun} that may go is {smallest:.4g}. Raise the threshold"
    )


def _selected(pruning: Pruning, pool: Pool, share: float) -> Selection:
    """Select what to remove; for a latency budget, measure it and repeat if it is too slow."""
    target, start = pruning.target, pruning.start
    if isinstance(target, Mapping):
        return select_widths(pool, widths_at(pruning.graph, start.widths, target, share))
    choose = partial(
        select,
        pool,
        target,
        scope=pruning.scope,
        start=start.cost,
        share=share,
        spare_fraction=0.0 if pruning.recovery is None else pruning.recovery.share,
        earlier=isinstance(pruning.recovery, Regrowth),
    )
    if not isinstance(target, Budget) or target.latency_ms is None:
        return choose()
    limit = target.limits(start.cost, share)["latency_ms"]
    choices = measured_choices(
        choose, lambda chosen: pruning.costs.latency_ms_after(pool.plan(chosen.removed))
    )
    return first_within(choices, limit, target)


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
    """Return a selection in the form that recoveries take."""
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
    """Remove some candidates inside this context, with compensation, and undo it at its end."""
    with undone(pruning.graph):
        if plan := pool.plan(removed):
            pruning.graph.apply(plan, compensate=pruning.calibration)
        yield


def _always(*_: CostAndMetrics) -> bool:
    return True
