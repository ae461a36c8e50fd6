"""`adapt`: let a policy change the structure of the user's own network."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import BudgetError, EditError
from dynopt_ray.policies.actions import Action, ActionMask, ActionSet
from dynopt_ray.policies.adapt_result import AdaptResult
from dynopt_ray.policies.costs import DEFAULT_COST, CostConfig, CostMixture
from dynopt_ray.policies.decisions import Situation, situation
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.evidence import GraphEvidence
from dynopt_ray.policies.graph_descriptors import describe_graph
from dynopt_ray.policies.observation import EpisodeProgress, Observation, Performance
from dynopt_ray.policies.policy import Policy, wants_previews
from dynopt_ray.policies.previews import Preview, preview_graph
from dynopt_ray.policies.rules import Rule
from dynopt_ray.policies.task_data import compensation_batches, num_training_rows
from dynopt_ray.policies.utilities import utility
from dynopt_ray.structure import CostKind, Graph, trace
from dynopt_ray.tasks import Task, TrainStats
from dynopt_ray.training import (
    Attempt,
    Budget,
    CostAndMetrics,
    Costs,
    Retraining,
    Snapshot,
    asks_latency,
    attempt,
    cost_and_metrics,
    default_optimizer,
    history_table,
    row,
    seeded,
)


def adapt(
    model: nn.Module | Graph,
    task: Task,
    policy: Policy | str,
    *,
    cost_weight: float,
    cost: CostConfig = DEFAULT_COST,
    budget: Budget | None = None,
    horizon: int = 16,
    train_steps: int = 20,
    actions: ActionSet | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
) -> AdaptResult:
    """Let a policy change a network in place, decision by decision, with training in between.

    A cursor visits the width groups in forward order. Every decision is judged on validation data
    and rolled back, bit for bit, if it breaks the budget. While the network is above the budget,
    only actions that lower an exceeded cost are legal.

    In the end the best state is restored. States within the budget come first; among them, the one
    with the largest smooth utility, `Metrics.smooth` − λ · relative cost, is best. Accuracy is too
    coarse to judge small changes, because it moves in steps of one row. Utility itself may
    therefore end slightly, by a row or two, below its value at the start.

    Args:
        model: the network or its graph, usually trained already.
        task: the task that the network learns.
        policy: what makes the decisions: a policy, or the name of a rule.
        cost_weight: λ, the price of the whole cost at the start in units of the metric.
        cost: the cost that utility charges for: its kind, or a mapping of kinds to weights.
        budget: limits on any costs; None means no limits.
        horizon: the largest number of decisions.
        train_steps: number of optimizer steps after each decision.
        actions: the actions that the policy chooses from. Default: `ActionSet()`.
        optimizer: an optimizer over the network's parameters; it follows every edit. Default: Adam
            with a learning rate of 0.001.
        seed: seed of all random choices.

    Raises:
        BudgetError: the budget was not met within the horizon. The network is unchanged.
        EditError: no width of the network can be resized, or the policy chose an illegal action.
            The network is unchanged.
        DivergedError: the loss became NaN or infinite. The network is unchanged.
        UnknownNameError: utility cannot charge for this cost.
        ValueError: a number is out of its range.

    Example:
        >>> from dynopt_ray.policies import DataSizedWidths
        >>> from dynopt_ray.tasks import load_task
        >>> task = load_task("digits-mlp", {"hidden": [16]})
        >>> result = adapt(
        ...     task.new_model(seed=0), task, DataSizedWidths(), cost_weight=0.1, horizon=4
        ... )
        >>> result.smooth_utility_after >= result.smooth_utility_before
        True
    """
    check_adaptation(cost_weight=cost_weight, cost=cost, horizon=horizon, train_steps=train_steps)
    graph = model if isinstance(model, Graph) else trace(model, task.example_inputs())
    if not graph.groups:
        raise EditError(f"no width of this network can be resized: {graph.fixed}")
    if optimizer is None:
        optimizer = default_optimizer(graph.model)
    num_receipts = len(graph.receipts)
    with seeded(graph.model, seed) as generator:
        run = _Run(
            graph=graph,
            task=task,
            policy=Rule(policy) if isinstance(policy, str) else policy,
            optimizer=optimizer,
            generator=generator,
            cost_weight=cost_weight,
            cost=CostMixture.of(cost),
            budget=budget,
            horizon=horizon,
            train_steps=train_steps,
            actions=actions or ActionSet(),
        )
        run.to_the_end()
    test = task.evaluate(graph.model, "test") if "test" in task.splits else None
    return AdaptResult(
        history=history_table(run.rows),
        before=run.start,
        after=run.best,
        best_step=run.best_step,
        utility_before=run.utility(run.start),
        utility_after=run.utility(run.best),
        smooth_utility_before=run.smooth_utility(run.start),
        smooth_utility_after=run.smooth_utility(run.best),
        test=test,
        receipts=tuple(graph.receipts[num_receipts:]),
        graph=graph,
    )


@dataclass(eq=False)
class _Run:
    """One adaptation in progress."""

    graph: Graph
    task: Task
    policy: Policy
    optimizer: Optimizer
    generator: torch.Generator
    cost_weight: float
    cost: CostMixture
    budget: Budget | None
    horizon: int
    train_steps: int
    actions: ActionSet
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0

    def __post_init__(self) -> None:
        self.costs = Costs(self.graph, self.task.example_inputs())
        self.start = self.now = self.best = self._judge()
        # Descriptors are relative to this. `self.start.cost` has FLOPs per sample, but graphs count
        # the FLOPs of their example inputs.
        self._start_cost = self.graph.cost()
        self._limits = {} if self.budget is None else self.budget.limits(self.start.cost)
        self._batches = compensation_batches(self.task)
        self._num_samples = num_training_rows(self.task)
        train_loss = self.task.evaluate(self.graph.model, "train").loss
        self._performance = self._performance_before = _performance(self.now, train_loss)
        self._first = self._best_state = self._snapshot()
        self.rows.append(self._row(self.now, 0, None, None, kept=True, duration_s=0.0))

    def to_the_end(self) -> None:
        """Take all decisions, then restore the best state; after an error, restore the start."""
        try:
            self._take_decisions()
            if self._excess(self.best):
                raise BudgetError(self._unmet())
        except Exception:
            self._first.restore()
            raise
        if self.best is not self.now:
            self._best_state.restore()

    def _take_decisions(self) -> None:
        for step in range(self.horizon):
            networks = self._describe(step)
            self._evidence = GraphEvidence(self.graph, self._batches, self.task.loss)
            current = self._situation(networks, step)
            action = self._chosen(current.observation[0], current.action_mask[0])
            if action.ends:
                break
            self._decide(step, networks, action)

    def utility(self, measurement: CostAndMetrics) -> float:
        """Return U for a state of the network."""
        return self._utility_of(measurement.validation.metric, measurement)

    def smooth_utility(self, measurement: CostAndMetrics) -> float:
        """Return U with `Metrics.smooth`, by which states are compared."""
        return self._utility_of(measurement.validation.smooth, measurement)

    def _utility_of(self, metric: float, measurement: CostAndMetrics) -> float:
        relative = self.cost.relative(measurement.cost, self.start.cost)
        return utility(metric, relative, self.cost_weight)

    def _chosen(self, observation: Observation, action_mask: ActionMask) -> Action:
        """Return the action that the policy chooses; refuse an illegal one."""
        place = int(self.policy.act(observation, action_mask))
        if 0 <= place < len(self.actions) and action_mask[place]:
            return self.actions[place]
        chosen = self.actions[place].label if 0 <= place < len(self.actions) else f"number {place}"
        legal = ", ".join(self.actions[int(i)].label for i in np.flatnonzero(action_mask))
        raise EditError(f"the policy chose {chosen}, but its action mask allows only {legal}")

    def _decide(self, step: int, networks: Descriptors, action: Action) -> None:
        training = Retraining(self.train_steps)
        trial: Attempt[CostAndMetrics, TrainStats] = attempt(
            self.graph,
            action.plan(self.graph, networks, self._evidence),
            judge=self._judge,
            accept=self._within_budget,
            before=self.now,
            recover=lambda: training(
                self.task, self.graph.model, self.optimizer, generator=self.generator
            ),
            optimizer=self.optimizer,
            compensate=self._evidence.inputs,
            generators=[self.generator],
        )
        group = self.graph.groups[int(networks.cursor[0])].name
        assert trial.recovered is not None
        self._performance_before = self._performance
        if trial.kept:
            self.now = trial.after
            self._performance = _performance(trial.after, trial.recovered.mean_loss)
        self.rows.append(
            self._row(
                trial.after,
                step + 1,
                group,
                action,
                kept=trial.kept,
                train_loss=trial.recovered.mean_loss,
                duration_s=trial.duration_s,
            )
        )
        if trial.kept and self._rank(self.now) > self._rank(self.best):
            self.best, self.best_step, self._best_state = self.now, step + 1, self._snapshot()

    def _judge(self) -> CostAndMetrics:
        latency = self.budget is not None and asks_latency(self.budget)
        return cost_and_metrics(self.graph, self.task, self.costs, latency=latency)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.graph, self.optimizer, generators=[self.generator])

    def _describe(self, step: int) -> Descriptors:
        return describe_graph(
            self.graph,
            step % len(self.graph.groups),
            start_widths=self.start.widths,
            start_cost=self._start_cost,
        )

    def _situation(self, networks: Descriptors, step: int) -> Situation:
        progress = EpisodeProgress(
            now=self._performance,
            before=self._performance_before,
            num_samples=self._num_samples,
            cost_weight=np.array([self.cost_weight]),
            charges=np.array([self.cost.weights]),
            steps_left=np.array([1 - step / self.horizon]),
        )
        action_mask = self._within_reach(self.actions.mask(networks))
        preview = self._preview(networks, action_mask) if wants_previews(self.policy) else None
        return situation(networks, progress, self.actions, action_mask, preview)

    def _preview(self, networks: Descriptors, action_mask: ActionMask) -> Preview:
        """Measure what each legal action would do."""
        now = self._performance
        unchanged = Preview.unchanged(now.smooth, now.loss, networks.costs, len(self.actions))
        return preview_graph(
            self.graph,
            self.task,
            network=networks,
            actions=self.actions,
            legal=action_mask[0] > 0,
            evidence=self._evidence,
            start_cost=self._start_cost,
            unchanged=unchanged,
            optimizer=self.optimizer,
        )

    def _within_reach(self, action_mask: ActionMask) -> ActionMask:
        """Above the budget, allow only actions that lower an exceeded cost, or else only keep."""
        exceeded = self._excess(self.now).keys()
        if not exceeded:
            return action_mask
        helps = np.array([bool(action.lowers & exceeded) for action in self.actions])
        keeps = np.array([action.label == "keep" for action in self.actions])
        for allowed in (helps, keeps):
            if (action_mask * allowed).any():
                return np.asarray(action_mask * allowed, dtype=np.int8)
        return action_mask

    def _excess(self, measurement: CostAndMetrics) -> dict[CostKind, float]:
        """Return the costs above their limit -> the excess as a fraction of the limit."""
        costs = {kind: float(getattr(measurement.cost, kind)) for kind in self._limits}
        return {
            kind: costs[kind] / limit - 1
            for kind, limit in self._limits.items()
            if costs[kind] > limit
        }

    def _within_budget(self, before: CostAndMetrics, after: CostAndMetrics) -> bool:
        """Return whether no cost rises above its limit, or further above it."""
        old = self._excess(before)
        return all(value <= old.get(kind, 0.0) for kind, value in self._excess(after).items())

    def _rank(self, measurement: CostAndMetrics) -> tuple[float, float]:
        return -sum(self._excess(measurement).values()), self.smooth_utility(measurement)

    def _unmet(self) -> str:
        reached = ", ".join(
            f"{kind} {getattr(self.best.cost, kind):g} of at most {self._limits[kind]:g}"
            for kind in self._excess(self.best)
        )
        return (
            f"{self.budget} was not met in {self.horizon} decisions; the lowest reached is "
            f"{reached}, at widths {dict(self.best.widths)}. Allow more decisions (horizon), "
            f"larger changes (actions), or a larger budget; the network is unchanged"
        )

    def _row(
        self,
        after: CostAndMetrics,
        step: int,
        group: str | None,
        action: Action | None,
        *,
        kept: bool,
        duration_s: float,
        train_loss: float | None = None,
    ) -> dict[str, Any]:
        return row(
            after,
            step=step,
            group=group,
            action=None if action is None else action.label,
            kept=kept,
            utility=self.utility(after),
            smooth_utility=self.smooth_utility(after),
            train_loss=train_loss,
            duration_s=duration_s,
        )


def check_adaptation(
    *, cost_weight: float, cost: CostConfig, horizon: int, train_steps: int
) -> None:
    """Refuse arguments of `adapt` that are out of their ranges.

    Raises:
        ValueError: a number is out of its range.
        UnknownNameError: utility cannot charge for this cost.
    """
    if not (np.isfinite(cost_weight) and cost_weight >= 0):
        raise ValueError(f"cost_weight is {cost_weight}; it must be a finite number of at least 0")
    CostMixture.of(cost)
    for name, value in (("horizon", horizon), ("train_steps", train_steps)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _performance(state: CostAndMetrics, train_loss: float) -> Performance:
    validation = state.validation
    figures = (validation.metric, validation.smooth, validation.loss, train_loss)
    return Performance(*(np.array([figure]) for figure in figures))
