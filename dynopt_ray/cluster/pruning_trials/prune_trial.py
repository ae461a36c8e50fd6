"""The trial of pruning searches: prune a trained network and retrain it."""

import copy
import hashlib
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dynopt_ray.cluster.pruning_trials.prune_config import PruneConfig, check_config
from dynopt_ray.cluster.pruning_trials.prune_pack import PrunePack, family_of
from dynopt_ray.cluster.pruning_trials.pruned_training import PrunedTraining, TracedStart
from dynopt_ray.cluster.searching import Range, Space
from dynopt_ray.cluster.trials import Measurement, TrialPack
from dynopt_ray.devices import AUTO
from dynopt_ray.policies import DEFAULT_COST, CostConfig, CostMixture
from dynopt_ray.structure import Cost, Graph, mask_of
from dynopt_ray.tasks import Task
from dynopt_ray.training import (
    Costs,
    Fraction,
    Rate,
    TrainingInParts,
    find_rate,
    loaded_network,
    make_optimizer,
    make_rate,
    make_recovery,
    prune,
    traced,
)

_RATE = re.compile(r"(^|\.)lr(\.\d+)?(\.initial)?$")


@dataclass(frozen=True, eq=False)
class PruneTrial:
    """Loads a trained network, prunes it, and retrains it, for example with a decaying rate.

    Attributes:
        task: the task that the network has learned.
        network: the trained network, in the format of `structure.save`.
        retrain_steps: number of optimizer steps of the retraining.
        num_reports: number of measurements during the retraining, evenly spaced.
        optimizer: optimizer of the retraining if `PruneConfig.optimizer` is None: a name, or a
            mapping with name and arguments.
        cost: the cost that utility charges for: "nonzero", "params", "flops" or "bytes", or several
            with their weights, such as {"flops": 1, "nonzero": 1}.
        start: the costs that a trial's costs are relative to. None takes those of the network
            before pruning.
        device: the device that trials compute on. "auto" is the GPU that a trial was granted, or
            else the CPU.
        seed: seed of the order of training rows and of random choices. Trials with the same
            `PruneConfig.seed` share it, so that they differ only by their settings.

    Example:
        >>> trial = PruneTrial(task, network, retrain_steps=100)  # doctest: +SKIP
        >>> search(trial, {"remove_fraction": [0.3, 0.6]}, num_trials=2)  # doctest: +SKIP
    """

    task: Task
    network: bytes
    retrain_steps: int = 200
    num_reports: int = 10
    optimizer: Any = "adam"
    cost: CostConfig = DEFAULT_COST
    start: Cost | None = None
    device: str = AUTO
    seed: int = 0

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a configuration that the trial cannot run.

        Raises:
            SpecError: a setting is unknown (the message gives the closest one) or out of range.
        """
        check_config(config, self.retrain_steps)

    def identity(self) -> str:
        """Return what makes the trial the same one in another process."""
        network = hashlib.sha256(self.network).hexdigest()[:16]
        return (
            f"prune {network}, {self.retrain_steps} steps in {self.num_reports} reports, seed "
            f"{self.seed}, cost {CostMixture.of(self.cost)}"
        )

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        """Prune, then retrain and yield a measurement every few steps.

        With a state, training continues from there. A learning rate that has changed since then
        takes effect, and if more is to be removed, this is done first.
        """
        training = self.begin(config, state, self.original())
        for step, figures in training.parts:
            yield training.measurement(step, figures)

    def new_pack(self) -> TrialPack:
        """Return a pack, in which trials of this kind are trained together.

        Raises:
            SpecError: networks of this kind cannot be.
        """
        start = self.original()
        return PrunePack(start, partial(self._begin_at, start))

    def family(self, config: Mapping[str, Any]) -> Hashable:
        """Return what trials that are trained together have in common.

        Raises:
            SpecError: this configuration cannot be part of a pack.
        """
        settings = PruneConfig(**config)
        return family_of(
            self.task,
            self.task.new_model(seed=0),
            optimizer=settings.optimizer or self.optimizer,
            lr=settings.lr,
            batch_size=settings.batch_size,
            num_steps=self.retrain_steps,
        )

    def _begin_at(
        self, start: TracedStart, config: Mapping[str, Any], state: Mapping[str, Any] | None
    ) -> PrunedTraining:
        return self.begin(config, state, start)

    def original(self) -> TracedStart:
        """Return the trained network, traced, and its cost."""
        task, graph = self._loaded()
        costs = Costs(graph, task.example_inputs())
        return TracedStart(task, graph, costs, self.start or costs.now())

    def begin(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Any] | None,
        original: TracedStart,
    ) -> PrunedTraining:
        """Prune a copy of the original network, or take one from a state, and begin to retrain."""
        settings = PruneConfig(**config)
        task, graph, parts = self._begun(settings, state, original)
        # Retraining changes neither masks nor widths.
        cost = original.costs.of_copy(graph).now()
        return PrunedTraining(
            task=task,
            graph=graph,
            parts=parts,
            num_steps=self.retrain_steps,
            remove_fraction=float(settings.remove_fraction),
            cost=CostMixture.of(self.cost).relative(cost, original.cost),
            sizes={"params": cost.params, "nonzero": cost.nonzero, "flops": cost.flops},
        )

    def find_rate(self, config: Mapping[str, Any]) -> float:
        """Return the learning rate that the range test suggests for the retraining.

        It runs in this process. `devices.gpus_granted` says whether it may use a GPU.

        Raises:
            DivergedError: the pruned network learns at none of the rates that were tried; see
                `training.find_rate`.
        """
        settings = PruneConfig(**config)
        task, graph = self._loaded()
        _, optimizer = self._pruned(graph, task, settings)
        return find_rate(graph.model, task, optimizer, seed=self.seed + settings.seed).suggestion

    def _begun(
        self,
        settings: PruneConfig,
        state: Mapping[str, Any] | None,
        original: TracedStart,
    ) -> tuple[Task, Graph, TrainingInParts]:
        """Return the task, the pruned network and its retraining, begun or continued."""
        if state is None:
            task, graph = original.task, copy.deepcopy(original.graph)
            rate, optimizer = self._pruned(graph, task, settings)
        else:
            task, graph = self._loaded(_as_bytes(state["network"]))
            rate, optimizer = self._rate_and_optimizer(graph, settings)
        parts = TrainingInParts(
            graph.model,
            task,
            optimizer,
            rate,
            num_steps=self.retrain_steps,
            num_parts=self.num_reports,
            seed=self.seed + settings.seed,
            batch_size=settings.batch_size,
        )
        if state is not None:
            parts.load_state_dict(state["training"])
            before = state["remove_fraction"]
            if settings.remove_fraction > before:
                more = 1 - (1 - settings.remove_fraction) / (1 - before)
                one_cut = replace(settings, remove_fraction=more, rounds=1)
                _prune(graph, task, one_cut, optimizer, self.seed + settings.seed)
        return task, graph, parts

    def _loaded(self, network: bytes | None = None) -> tuple[Task, Graph]:
        task = self.task.to(self.device)
        return task, traced(task, loaded_network(task, network or self.network))

    def _pruned(self, graph: Graph, task: Task, settings: PruneConfig) -> tuple[Rate, Optimizer]:
        """Prune the network, and return the learning rate and the optimizer of the retraining."""
        rate, optimizer = self._rate_and_optimizer(graph, settings)
        if settings.remove_fraction > 0:
            _prune(graph, task, settings, optimizer, self.seed + settings.seed)
        return rate, optimizer

    def _rate_and_optimizer(self, graph: Graph, settings: PruneConfig) -> tuple[Rate, Optimizer]:
        rate = make_rate(settings.lr, self.retrain_steps)
        optimizer = make_optimizer(
            settings.optimizer or self.optimizer, graph.model, lr=rate.initial
        )
        return rate, optimizer


def rate_range(space: Space) -> str | None:
    """Return the name of the first range of initial learning rates in a space, or None."""
    ranges = [name for name, one in space.dimensions.items() if isinstance(one, Range)]
    return next((name for name in ranges if _RATE.search(name)), None)


def _prune(
    graph: Graph, task: Task, settings: PruneConfig, optimizer: Optimizer, seed: int
) -> None:
    prune(
        graph,
        task,
        target=Fraction(remove=_share(graph, settings)),
        criterion=settings.criterion,
        granularity=settings.granularity,
        scope=settings.scope,
        rounds=settings.rounds,
        recovery=make_recovery(settings.recovery),
        optimizer=optimizer,
        seed=seed,
    )


def _share(graph: Graph, settings: PruneConfig) -> float:
    """The fraction to give to `Fraction`, which counts weights masked already as removed."""
    if settings.granularity == "unit":
        return settings.remove_fraction
    weights = [p for p in graph.model.parameters() if p.ndim > 1]
    masks = [mask_of(weight) for weight in weights]
    num_masked = sum(int((~mask).sum()) for mask in masks if mask is not None)
    masked = num_masked / sum(weight.numel() for weight in weights)
    return masked + settings.remove_fraction * (1 - masked)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
