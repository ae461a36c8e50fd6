"""`cut_once`: let a policy cut the user's own network once, then train it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.policies.costs import DEFAULT_COST, CostConfig, CostMixture
from dynopt_ray.policies.cuts.allocated_cut import AllocatedCut
from dynopt_ray.policies.cuts.candidates import CutCandidate, Cutting
from dynopt_ray.policies.cuts.ladder_cut import LadderCut
from dynopt_ray.policies.cuts.policy import CutPolicy
from dynopt_ray.policies.cuts.single_cut import SingleCut
from dynopt_ray.structure import Edit, Graph, Receipt, trace
from dynopt_ray.tasks import Metrics, Task, TrainStats
from dynopt_ray.training import (
    CostAndMetrics,
    Costs,
    Retraining,
    Snapshot,
    calibration_inputs,
    cost_and_metrics,
    default_optimizer,
    history_table,
    make_by_name,
    row,
    seeded,
)

if TYPE_CHECKING:
    import pandas as pd

CUT_POLICIES: dict[str, Any] = {
    "allocated_cut": AllocatedCut,
    "ladder_cut": LadderCut,
    "single_cut": SingleCut,
}
"""Policies that cut a network once, by the names that specs use."""


@dataclass(frozen=True, eq=False)
class CutResult:
    """What a policy that cuts once did to a network.

    Attributes:
        graph: the traced network, cut and trained.
        chosen: the cut that was made; `chosen.after` is the network right after it.
        compared: all cuts that were tried.
        before: cost and metrics of the network before.
        after: cost and metrics of the network after training.
        training: statistics of the training; None without any.
        utility_before: U = metric − λ · relative cost before.
        utility_after: U after training.
        smooth_utility_before: U before, with `Metrics.smooth` instead of the metric.
        smooth_utility_after: U after training, with `Metrics.smooth` instead of the metric.
        test: the final metrics on the test split, which influenced no decision; None if the task
            has no test split.
        receipts: receipts of the plans that were applied; `undo()` the last one first.
        duration_s: seconds to choose and make the cut, and to train.
    """

    graph: Graph
    chosen: CutCandidate
    compared: tuple[CutCandidate, ...]
    before: CostAndMetrics
    after: CostAndMetrics
    training: TrainStats | None
    utility_before: float
    utility_after: float
    smooth_utility_before: float
    smooth_utility_after: float
    test: Metrics | None
    receipts: tuple[Receipt, ...]
    duration_s: float

    @property
    def plan(self) -> tuple[list[Edit], ...]:
        """The plans that were applied, one after the other; each can be written as JSON."""
        return self.chosen.plans

    @property
    def table(self) -> "pd.DataFrame":
        """One row per cut that was tried, with what was measured right after it."""
        rows = [
            row(
                candidate.after,
                cut=candidate.cut.label,
                chosen=candidate is self.chosen,
                relative_cost=candidate.relative_cost,
                smooth_utility=candidate.smooth_utility,
                duration_s=candidate.duration_s,
            )
            for candidate in self.compared
        ]
        return history_table(rows)


def cut_once(
    model: nn.Module | Graph,
    task: Task,
    policy: CutPolicy | str | Mapping[str, Any],
    *,
    cost_weight: float,
    num_steps: int,
    cost: CostConfig = DEFAULT_COST,
    optimizer: Optimizer | None = None,
    seed: int = 0,
) -> CutResult:
    """Let a policy cut a network once in place, with compensation, and train it afterwards.

    Cuts that the policy only tries are undone bit for bit; they cost evaluations on validation data
    and no training steps.

    Args:
        model: the network or its graph, usually trained already.
        task: the task that the network learns.
        policy: chooses the cut: a policy; or "ladder_cut", "allocated_cut" or "single_cut", or a
            mapping of such a name and arguments.
        cost_weight: λ, the price of the whole cost at the start in units of the metric.
        num_steps: number of optimizer steps after the cut; 0 trains nothing.
        cost: the cost that utility charges for: a name, or a mapping from names to weights.
        optimizer: an optimizer over the network's parameters; it follows the cut. Default: Adam
            with a learning rate of 0.001.
        seed: seed of all random choices.

    Raises:
        BudgetError: the policy found no cut that can be made. The network is unchanged.
        DivergedError: the loss became NaN or infinite. The network is unchanged.
        EditError: no width of the network can be resized. The network is unchanged.
        SpecError: no policy has this name, or it refuses its arguments.
        UnknownNameError: utility cannot charge for one of the costs.
        ValueError: a number is out of its range.

    Example:
        >>> import torch
        >>> from dynopt_ray.tasks import load_task
        >>> task = load_task("digits-mlp", {"hidden": [16]})
        >>> model = task.new_model(seed=0)
        >>> _ = task.train_steps(model, torch.optim.Adam(model.parameters(), lr=0.01), 200)
        >>> result = cut_once(model, task, "ladder_cut", cost_weight=0.3, num_steps=100)
        >>> result.after.cost.flops < result.before.cost.flops
        True
    """
    _check_numbers(cost_weight, num_steps)
    mixture = CostMixture.of(cost)
    if isinstance(policy, str | Mapping):
        policy = make_cut_policy(policy)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    if not graph.groups:
        raise EditError(f"no width of this network can be resized: {graph.fixed}")
    if optimizer is None:
        optimizer = default_optimizer(graph.model)
    with seeded(graph.model, seed) as generator:
        costs = Costs(graph, task.example_inputs())
        cutting = Cutting(
            graph=graph,
            task=task,
            costs=costs,
            start=cost_and_metrics(graph, task, costs),
            cost=mixture,
            cost_weight=cost_weight,
            calibration=tuple(calibration_inputs(True, task, generator) or ()),
            generator=generator,
        )
        return _cut(cutting, policy, optimizer, num_steps)


def make_cut_policy(config: str | Mapping[str, Any]) -> CutPolicy:
    """Return the policy that a name, or a mapping with "name" and arguments, describes.

    Raises:
        SpecError: no policy has this name, or it lacks or refuses an argument.
    """
    made: CutPolicy = make_by_name(config, "policy that cuts once", CUT_POLICIES)
    return made


def _cut(cutting: Cutting, policy: CutPolicy, optimizer: Optimizer, num_steps: int) -> CutResult:
    """Choose a cut, make it and train; after an error, restore the network."""
    graph, task, generator = cutting.graph, cutting.task, cutting.generator
    snapshot = Snapshot(graph, optimizer, generators=[generator])
    num_receipts, begin = len(graph.receipts), time.perf_counter()
    try:
        choice = policy.choose(cutting)
        for plan in choice.chosen.plans:
            graph.apply(plan, optimizer=optimizer, compensate=cutting.calibration)
        training = None
        if num_steps:
            training = Retraining(num_steps)(task, graph.model, optimizer, generator=generator)
        after = cutting.measured()
    except BaseException:
        snapshot.restore()
        raise
    duration_s = time.perf_counter() - begin
    before = cutting.start
    return CutResult(
        graph=graph,
        chosen=choice.chosen,
        compared=choice.compared,
        before=before,
        after=after,
        training=training,
        utility_before=cutting.utility_of(before.validation.metric, before),
        utility_after=cutting.utility_of(after.validation.metric, after),
        smooth_utility_before=cutting.utility_of(before.validation.smooth, before),
        smooth_utility_after=cutting.utility_of(after.validation.smooth, after),
        test=task.evaluate(graph.model, "test") if "test" in task.splits else None,
        receipts=tuple(graph.receipts[num_receipts:]),
        duration_s=duration_s,
    )


def _check_numbers(cost_weight: float, num_steps: int) -> None:
    if not (np.isfinite(cost_weight) and cost_weight >= 0):
        raise ValueError(f"cost_weight is {cost_weight}; it must be a finite number of at least 0")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps is {num_steps!r}; it must be a whole number of at least 0")
