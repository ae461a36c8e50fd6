"""The starting point of a run: a task, and a network that is trained on it or loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from dynopt_ray.devices import AUTO
from dynopt_ray.errors import SpecError
from dynopt_ray.policies import CHARGED_COSTS, CostConfig, CostMixture, utility
from dynopt_ray.runs.run import Run
from dynopt_ray.runs.spec import CostFractions, NetworkSpec
from dynopt_ray.structure import history_of, plan_to_json, save
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.training import (
    Budget,
    Costs,
    TrainingInParts,
    loaded_network,
    make_optimizer,
    make_rate,
    traced,
)

NETWORK_FILE = "model/network.safetensors"
_PARTS = 40
_TRAIN = "train"


@dataclass
class Curves:
    """Collects loss, learning rate and accuracy over steps, phase by phase: the table `curves`."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0

    def add(self, phase: str, step: int, **figures: float) -> None:
        """Add a point.

        Args:
            phase: name of the phase. Its steps are counted on from the end of the previous phase.
            step: step within the phase.
            **figures: the measurements; any of loss, lr, accuracy and validation_loss.
        """
        if self.rows and self.rows[-1]["phase"] != phase:
            self._offset = self.rows[-1]["step"]
        self.rows.append({"phase": phase, "step": self._offset + step, **figures})

    def write(self, run: Run) -> None:
        """Write the table to the run directory."""
        run.directory.write_table("curves", pd.DataFrame(self.rows))


@dataclass(frozen=True)
class Origin:
    """A task and, if the spec names a start, the network to start from.

    Attributes:
        task: the task.
        spec: the spec of the run.
        network: the loaded network as bytes; None if a new network has to be trained.
    """

    task: Task
    spec: NetworkSpec
    network: bytes | None

    def model(self, run: Run, curves: Curves) -> nn.Module:
        """Return the loaded network, or train a new one and show the progress."""
        if self.network is not None:
            return loaded_network(self.task, self.network)
        kept = run.parts.result(_TRAIN)
        if kept is not None:
            curves.rows += kept["curves"]
            model = self.task.new_model(seed=self.spec.seed)
            model.load_state_dict(kept["model"])
            return model
        return self._trained(run, curves)

    def _trained(self, run: Run, curves: Curves) -> nn.Module:
        phase = self.spec.train
        assert phase is not None  # a spec has either start or train
        model = self.task.new_model(seed=self.spec.seed)
        rate = make_rate(phase.lr, phase.num_steps)
        optimizer = make_optimizer(self.spec.optimizer, model, lr=rate.initial)
        with run.progress.stage("train", phase.num_steps) as stage:
            training = TrainingInParts(
                model,
                self.task,
                optimizer,
                rate,
                num_steps=phase.num_steps,
                num_parts=_PARTS,
                seed=self.spec.seed,
            )
            before, accuracy = 0, 0.0
            begun = run.parts.state(_TRAIN)
            if begun is not None:
                training.load_state_dict(begun["training"])
                curves.rows += begun["curves"]
                before = curves.rows[-1]["step"]
                stage.advance(before)
            for step, figures in training:
                curves.add("train", step, **figures)
                accuracy = figures["accuracy"]
                stage.advance(step - before, note=f"accuracy {accuracy:.4f}")
                before = step
                run.parts.save(
                    _TRAIN, lambda: {"training": training.state_dict(), "curves": curves.rows}
                )
            stage.result(f"accuracy {accuracy:.4f} after {phase.num_steps} steps")
        run.parts.finish(_TRAIN, {"model": model.state_dict(), "curves": curves.rows})
        return model


def prepare_origin(spec: NetworkSpec) -> Origin:
    """Load the task and, if the spec names one, the starting network.

    Raises:
        SpecError: the task refuses its options, or the starting network does not exist.
        DataError: the task's data are missing or cannot be learned from.
        CheckpointError: the starting network is damaged or belongs to another task.
    """
    task = prepare_task(spec)
    if spec.start is None:
        return Origin(task, spec, None)
    path = Path(spec.start)
    path = path / NETWORK_FILE if path.is_dir() else path
    if not path.is_file():
        raise SpecError(
            f"start: there is no network at {path}; give a run directory with {NETWORK_FILE}, or "
            "the file itself"
        )
    network = path.read_bytes()
    loaded_network(task, network)
    return Origin(task, spec, network)


def prepare_task(spec: NetworkSpec) -> Task:
    """Return the task of a spec, on its device. Messages of a SpecError begin with "task:".

    Raises:
        SpecError: the task refuses its options.
        DeviceError: there is no such device.
        DynoptError: see `load_task`.
    """
    try:
        task = load_task(spec.task)
    except SpecError as error:
        raise SpecError(f"task: {error}") from error
    has_own = isinstance(spec.task, dict) and "device" in spec.task
    return task.to(task.device if has_own and spec.device == AUTO else spec.device, spec.precision)


def as_budget(fractions: CostFractions | None) -> Budget | None:
    """Return the budget that a spec asks for, or None."""
    if fractions is None:
        return None
    return Budget(
        params=fractions.params,
        nonzero=fractions.nonzero,
        flops=fractions.flops,
        bytes=fractions.bytes,
        latency_ms=fractions.latency_ms,
    )


def figures(name: str, task: Task, model: nn.Module) -> dict[str, Any]:
    """Return a row of the table `summary`: the accuracy of a network and its costs.

    FLOPs and latency are those of one sample.
    """
    cost = Costs(traced(task, model), task.example_inputs()).now(latency=True)
    row: dict[str, Any] = {"network": name, "accuracy": task.evaluate(model).metric}
    if "test" in task.splits:
        row["test_accuracy"] = task.evaluate(model, "test").metric
    sizes: dict[str, Any] = {kind: getattr(cost, kind) for kind in CHARGED_COSTS}
    return {**row, **sizes, "latency_ms": cost.latency_ms}


def with_utility(
    rows: Sequence[dict[str, Any]], cost_weight: float, cost: CostConfig
) -> list[dict[str, Any]]:
    """Return rows of `figures` with utility; costs are relative to those of the first row."""
    start, mixture = rows[0], CostMixture.of(cost)

    def price(row: dict[str, Any]) -> float:
        return float(mixture.mean(lambda kind: row[kind] / start[kind]))

    return [{**row, "utility": utility(row["accuracy"], price(row), cost_weight)} for row in rows]


def keep_network(run: Run, model: nn.Module, **metadata: Any) -> None:
    """Write a network as the result of the run, and the plans that made it.

    They are model/network.safetensors and model/plans.json, a list of plans, each as
    `structure.plan_to_json` writes it. Applied to a new network of the task, they give its widths
    and masks.
    """
    path = run.directory.path / NETWORK_FILE
    path.parent.mkdir(exist_ok=True)
    save(path, model, metadata=metadata)
    plans = ", ".join(plan_to_json(plan) for plan in history_of(model))
    run.directory.write_text(f"{NETWORK_FILE.rpartition('/')[0]}/plans.json", f"[{plans}]")
