"""The trial of pruning searches: prune a trained network and retrain it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.cluster.searching.space import Range, Space
from dynopt_ray.cluster.trials import Measurement
from dynopt_ray.criteria import SCOPES, build_criterion
from dynopt_ray.devices import AUTO
from dynopt_ray.errors import DynoptError, SpecError, did_you_mean
from dynopt_ray.structure import Cost, Graph, mask_of
from dynopt_ray.tasks import Task
from dynopt_ray.training import (
    MOST_ROUNDS,
    Costs,
    Fraction,
    Granularity,
    Rate,
    TrainingInParts,
    find_rate,
    loaded_network,
    make_optimizer,
    make_rate,
    make_recovery,
    network_bytes,
    prune,
    traced,
)

_MOST_SCORES = 2_000
_RATE = re.compile(r"(^|\.)lr(\.\d+)?(\.initial)?$")


@dataclass(frozen=True)
class PruneConfig:
    """The settings of a trial, each of which a search may choose.

    Attributes:
        remove_fraction: fraction of the units (or of the weights that are not masked yet) to
            remove, in [0, 1); 0 prunes nothing.
        criterion: scores importance: a criterion's name, or a mapping with its name and
            arguments.
        granularity: "unit" or "weight".
        scope: "global" or "layer".
        rounds: number of cuts in which the fraction is removed; all come before the retraining.
        recovery: "random", "greedy", a mapping with name and arguments, or None.
        lr: learning rate of the retraining: a number, or a mapping that describes a schedule, a
            controller or a population.
        optimizer: optimizer of the retraining: a name, or a mapping with name and arguments. None
            uses `PruneTrial.optimizer`.
        batch_size: rows per batch of the retraining; None takes the task's.
        seed: added to `PruneTrial.seed`; another seed repeats a trial with other random draws.
    """

    remove_fraction: float
    criterion: Any = "magnitude"
    granularity: Any = "unit"
    scope: Any = "global"
    rounds: int = 1
    recovery: Any = None
    lr: Any = 0.01
    optimizer: Any = None
    batch_size: int | None = None
    seed: int = 0


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
        cost: the cost that utility charges for: "nonzero", "params", "flops" or "bytes".
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
    cost: str = "nonzero"
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
            f"{self.seed}, cost {self.cost}"
        )

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        """Prune, then retrain and yield a measurement every few steps.

        With a state, training continues from there. A learning rate that has changed since then
        takes effect, and if more is to be removed, this is done first.
        """
        settings = PruneConfig(**config)
        task, graph, parts = self._begun(settings, state)
        costs = Costs(graph, task.example_inputs())
        start = self.start or self._start_cost(task)
        cost = costs.now()  # retraining changes neither masks nor widths
        sizes = {"params": cost.params, "nonzero": cost.nonzero, "flops": cost.flops}
        for step, figures in parts:
            final = step == self.retrain_steps
            yield Measurement(
                step=step,
                accuracy=figures.pop("accuracy"),
                cost=cost.relative_to(start, self.cost),
                final=final,
                details={**figures, **sizes},
                network=(lambda: network_bytes(graph.model)) if final else None,
                row_scores=_scores(task, graph) if final else None,
                state=lambda: {
                    "network": _as_tensor(network_bytes(graph.model)),
                    "training": parts.state_dict(),
                    "remove_fraction": float(settings.remove_fraction),
                },
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
        self, settings: PruneConfig, state: Mapping[str, Any] | None
    ) -> tuple[Task, Graph, TrainingInParts]:
        """Return the task, the pruned network and its retraining, begun or continued."""
        task, graph = self._loaded(None if state is None else _as_bytes(state["network"]))
        if state is None:
            rate, optimizer = self._pruned(graph, task, settings)
        else:
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

    def _start_cost(self, task: Task) -> Cost:
        graph = traced(task, loaded_network(task, self.network))
        return Costs(graph, task.example_inputs()).now()

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


def _scores(task: Task, graph: Graph) -> list[float] | None:
    """Return scores of evenly spaced validation rows, the same rows for every network."""
    scores = task.row_scores(graph.model)
    if scores is None:
        return None
    found: list[float] = scores[:: -(-len(scores) // _MOST_SCORES)].tolist()
    return found


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _share(graph: Graph, settings: PruneConfig) -> float:
    """The fraction to give to `Fraction`, which counts weights masked already as removed."""
    if settings.granularity == "unit":
        return settings.remove_fraction
    weights = [p for p in graph.model.parameters() if p.ndim > 1]
    masks = [mask_of(weight) for weight in weights]
    num_masked = sum(int((~mask).sum()) for mask in masks if mask is not None)
    masked = num_masked / sum(weight.numel() for weight in weights)
    return masked + settings.remove_fraction * (1 - masked)


def check_config(config: Mapping[str, Any], retrain_steps: int) -> None:
    """Refuse a configuration that a trial cannot run.

    Raises:
        SpecError: a setting is unknown (the message gives the closest one) or out of range.
    """
    known = [field.name for field in fields(PruneConfig)]
    for name in config:
        if name not in known:
            raise SpecError(
                f"space.{name}: a trial has no setting {name!r}.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}."
            )
    if "remove_fraction" not in config:
        raise SpecError("space.remove_fraction: missing; give the fraction to remove, e.g. 0.5")
    _check_settings(PruneConfig(**config), retrain_steps)


def _check_settings(settings: PruneConfig, retrain_steps: int) -> None:
    """Refuse a setting that is out of range; the message names it."""
    fraction = settings.remove_fraction
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise SpecError(f"space.remove_fraction: must be from 0 to below 1, not {fraction!r}")
    if type(settings.rounds) is not int or not 1 <= settings.rounds <= MOST_ROUNDS:
        raise SpecError(
            f"space.rounds: must be a whole number from 1 to {MOST_ROUNDS:,}, not "
            f"{settings.rounds!r}"
        )
    if type(settings.seed) is not int or settings.seed < 0:
        raise SpecError(f"space.seed: must be a whole number from 0, not {settings.seed!r}")
    size = settings.batch_size
    if size is not None and (type(size) is not int or size < 1):
        raise SpecError(f"space.batch_size: must be a whole number from 1, not {size!r}")
    for name, known in (("granularity", get_args(Granularity)), ("scope", SCOPES)):
        value = getattr(settings, name)
        if value not in known:
            raise SpecError(f"space.{name}: must be one of {', '.join(known)}, not {value!r}")
    checks: dict[str, Callable[[], object]] = {
        "criterion": lambda: build_criterion(settings.criterion),
        "recovery": lambda: make_recovery(settings.recovery),
        "lr": lambda: make_rate(settings.lr, retrain_steps),
        "optimizer": lambda: (
            settings.optimizer and make_optimizer(settings.optimizer, nn.Linear(1, 1), lr=0.1)
        ),
    }
    for name, check in checks.items():
        try:
            check()
        except (DynoptError, TypeError) as error:
            raise SpecError(f"space.{name}: {error}") from error
