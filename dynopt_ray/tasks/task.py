"""A task: a model factory, data splits, a loss and a metric."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynopt_ray.criteria import Batch
from dynopt_ray.devices import Precision, check_precision, chosen_device, computing
from dynopt_ray.errors import UnknownNameError
from dynopt_ray.schedules import Schedule
from dynopt_ray.structure import Inputs, check_trains
from dynopt_ray.tasks import loop
from dynopt_ray.tasks.batches import OutputKind
from dynopt_ray.tasks.loop import AddedLoss, TrainStats, UnreadMetrics
from dynopt_ray.tasks.model_factories import ModelFactory, check_factory, made_by
from dynopt_ray.tasks.objectives import (
    LossFunction,
    MetricFunction,
    Metrics,
    TargetKind,
    kind_of,
    resolve_loss,
    resolve_metric,
)
from dynopt_ray.tasks.seeding import seeded_torch
from dynopt_ray.tasks.sources import (
    Arrays,
    ArraySource,
    ArraySplits,
    Loader,
    Source,
    Split,
    array_sources,
    in_memory,
    loader_sources,
)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """What to learn: a model factory, data splits, a loss and a metric.

    Make one with `from_arrays`, `from_loaders` or `load_task`. Decisions use the validation
    split. The test split is used once, for the final result.

    Attributes:
        name: the name of the task in messages and reports.
        model: makes a new network.
        sources: the source of each split's batches.
        loss: (output, targets) -> mean loss.
        metric: (output, targets) -> number, larger is better. None means that each evaluation
            takes the default for its targets: accuracy for labels, R² for numbers.
        kind: "labels" or "numbers"; None if the loss is the user's own function.
        device: the device of models and batches.
        precision: see `devices.Precision`; None leaves PyTorch as it is set.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 4)
        >>> y = (x[:, 0] > 0).long()
        >>> task = Task.from_arrays(
        ...     model=lambda: torch.nn.Linear(4, 2), train=(x, y), validation=(x, y), name="sign"
        ... )
        >>> model = task.new_model(seed=0)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        >>> stats = task.train_steps(model, optimizer, 100)
        >>> task.evaluate(model).metric > 0.9
        True
    """

    name: str
    model: ModelFactory
    sources: Mapping[Split, Source]
    loss: LossFunction
    metric: MetricFunction | None
    kind: TargetKind | None
    device: torch.device
    precision: Precision | None = None

    @staticmethod
    def from_arrays(
        *,
        model: ModelFactory,
        train: Arrays,
        validation: Arrays,
        test: Arrays | None = None,
        loss: str | LossFunction = "cross_entropy",
        metric: str | MetricFunction | None = None,
        batch_size: int = 128,
        name: str = "arrays",
        device: str | torch.device = "cpu",
    ) -> "Task":
        """Make a task on arrays in memory.

        Arrays that are float32 (x, and y of a regression) or int64 (labels) are used without a
        copy and may be read-only; do not change them afterwards. Other floats are converted to
        torch's default dtype, other whole numbers to int64.

        Args:
            model: a function without arguments that makes the network.
            train: (x, y), with x of shape (rows, …), and y of shape (rows,) for labels 0, 1, …
                or of the output's shape for numbers.
            validation: (x, y) for decisions.
            test: (x, y) for the final result.
            loss: "cross_entropy", "mse", "l1", "huber", or a function (output, targets) ->
                mean loss.
            metric: "accuracy", "r2", or a function (output, targets) of a whole split, larger
                is better. Default: accuracy for labels, R² for numbers.
            batch_size: rows per batch.
            name: the name of the task in messages and reports.
            device: the device for models and data; "auto" is the GPU if there is one, or else the
                CPU.

        Raises:
            DeviceError: there is no such device.
            DataError: arrays are empty or do not match, a value is NaN or infinite (the message
                names row and column), or labels are not 0, 1, ….
            UnknownNameError: `loss` or `metric` is unknown.
            TypeError: `model` is a module rather than a function that makes one.
            ValueError: `batch_size` is below 1, or the metric is for the other kind of targets.
        """
        check_factory(model)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        objective = resolve_loss(loss)
        sources = array_sources(
            {"train": train, "validation": validation, "test": test},
            kind=objective.targets,
            batch_size=batch_size,
        )
        # With the user's own loss and no metric, each evaluation chooses the metric.
        targets = kind_of(sources["train"].y) if metric or objective.targets else None
        task = Task(
            name=name,
            model=model,
            sources=sources,
            loss=objective.function,
            metric=resolve_metric(metric, targets),
            kind=objective.targets,
            device=torch.device("cpu"),
        )
        return task.to(device)

    @staticmethod
    def from_loaders(
        *,
        model: ModelFactory,
        train: Loader,
        validation: Loader,
        test: Loader | None = None,
        loss: str | LossFunction = "cross_entropy",
        metric: str | MetricFunction | None = None,
        name: str = "loaders",
        device: str | torch.device = "cpu",
    ) -> "Task":
        """Make a task on any iterables of batches: torch DataLoaders, Hugging Face datasets, lists.

        A batch is (inputs, targets) or a dict in which `label`, `labels`, `target`, `targets`
        or `y` holds the targets. If a dict has one other column, the model is called with that
        column; if it has several, they are keyword arguments. A tuple of inputs is spread over the
        positional arguments. A loader decides the order of its rows; to shuffle reproducibly, give
        a DataLoader its own generator.

        Args:
            model: a function without arguments that makes the network.
            train: batches to learn from, iterated over repeatedly. It may also be a function
                that returns a new iterable, e.g. `lambda: dataset.iter(128)`.
            validation: batches for decisions, each row once.
            test: batches for the final result.
            loss: see `from_arrays`.
            metric: see `from_arrays`.
            name: see `from_arrays`.
            device: see `from_arrays`.

        Raises:
            DeviceError: there is no such device.
            DataError: a loader can be iterated over only once. Errors in a batch are raised when
                it is read, and name its number.
            UnknownNameError: `loss` or `metric` is unknown.
            TypeError: `model` is no function, or a loader cannot be iterated over.
            ValueError: the metric is for the other kind of targets.
        """
        check_factory(model)
        objective = resolve_loss(loss)
        place = chosen_device(device)
        return Task(
            name=name,
            model=model,
            sources=loader_sources(
                {"train": train, "validation": validation, "test": test},
                kind=objective.targets,
                device=place,
            ),
            loss=objective.function,
            metric=resolve_metric(metric, objective.targets),
            kind=objective.targets,
            device=place,
        )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The names of the splits that this task has."""
        return tuple(self.sources)

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the model tells apart (one logit: 2), or None for numbers.

        Raises:
            DataError: the model's output does not fit the targets.
        """
        return self._outputs[1]

    @property
    def outputs(self) -> OutputKind:
        """The kind of the model's outputs: a score per class, one logit per label, or numbers."""
        return self._outputs[0]

    @cached_property
    def _outputs(self) -> tuple[OutputKind, int | None]:
        return loop.outputs_of(partial(self.new_model, 0), self._source("train"), self.kind)

    def new_model(self, seed: int | None = None) -> nn.Module:
        """A new network of the starting size, on the task's device.

        Args:
            seed: the same seed gives the same weights, and the states of torch's generators are
                restored. Without it the weights are drawn from torch's global generator.

        Raises:
            TypeError: the factory does not return a module.
        """
        if seed is None:
            return made_by(self.model, self.name).to(self.device)
        used = {self.device.type, torch.get_default_device().type}
        devices = range(torch.cuda.device_count()) if "cuda" in used else ()
        with seeded_torch(seed, devices):
            return made_by(self.model, self.name).to(self.device)

    def example_inputs(self) -> Inputs:
        """Inputs to call the model with, for tracing: the first two training rows."""
        return self._source("train").head(2)[0]

    def batches(
        self,
        split: Split,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """One pass over a split, each row once.

        Args:
            split: "train", "validation" or "test".
            batch_size: rows per batch, by default the task's; the last batch holds the rest.
            generator: a CPU generator that shuffles the rows; without it they come in order.
                Loaders keep their own order.

        Raises:
            UnknownNameError: the task has no such split.
            DataError: `batch_size` was given for a loader, which makes its own batches.
            ValueError: `batch_size` is less than 1.
        """
        return self._source(split).batches(batch_size, generator)

    def train_steps(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        num_steps: int,
        *,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        schedule: Schedule | LRScheduler | None = None,
        added_loss: AddedLoss | None = None,
    ) -> TrainStats:
        """Take optimizer steps on shuffled training batches.

        The order of rows is that of `batch_indices`; a loader continues where the last call
        stopped. The model is trained in train mode, and its previous mode is restored afterwards.

        Args:
            model: the model, which is trained in place.
            optimizer: an optimizer of the model's parameters.
            num_steps: the number of optimizer steps to take.
            batch_size: rows per batch. Default: the task's batch size.
            generator: a CPU generator that draws the order. Default: torch's global generator.
            schedule: the learning rate. A schedule starts at its step 0 with this call and
                sets the rate as `to_torch` does. A torch scheduler is stepped after each
                optimizer step, and so continues from call to call.
            added_loss: (inputs, output) -> scalar that is added to each batch's loss.

        Raises:
            DivergedError: the loss is NaN or inf; the step, which the message names, is not taken.
            DataError: the model's output does not fit the targets, or a loader's batch is bad.
            ValueError: `num_steps` < 1, the optimizer trains none of the model's parameters, or
                the torch scheduler is for another optimizer.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
        check_trains(optimizer, model)
        source = self._source("train")
        with computing(self.device, self.precision):
            return loop.train(
                model,
                optimizer,
                source.stream(batch_size, generator or torch.default_generator),
                num_steps=num_steps,
                source=source,
                loss=self.loss,
                kind=self.kind,
                schedule=schedule,
                added_loss=added_loss,
            )

    def evaluate(self, model: nn.Module, split: Split = "validation") -> Metrics:
        """Compute loss, metric and confidence over all rows of a split.

        The model runs in eval mode without gradients, and each module's mode is restored.

        Raises:
            UnknownNameError: the task has no such split.
            DataError: the model's output does not fit the targets; or the targets are floats that
                are all 0 or 1, the loss is the user's own, and the task has no metric.
            DivergedError: the loss or the metric is NaN or infinite.
        """
        return loop.read_metrics(self.evaluate_unread(model, split))[0]

    def evaluate_unread(self, model: nn.Module, split: Split = "validation") -> UnreadMetrics:
        """Do as `evaluate`, but read nothing; `read_metrics` reads those of several networks."""
        source = self._source(split)
        with computing(self.device, self.precision):
            return loop.evaluate(model, source, loss=self.loss, metric=self.metric, kind=self.kind)

    def row_scores(self, model: nn.Module, split: Split = "validation") -> Tensor | None:
        """Return one score per row of a split, (rows,) on the CPU; None unless there are classes.

        It is the mean of right (1) or wrong (0) and of the probability given to the right class.
        """
        source = self._source(split)
        with computing(self.device, self.precision):
            return loop.scores(model, source.batches(None, None), source=source, kind=self.kind)

    def arrays(self, split: Split) -> tuple[Tensor, Tensor]:
        """The inputs and targets of a split, on the task's device. Do not write to them.

        Raises:
            UnknownNameError: the task has no such split.
            DataError: the split comes from a loader.
        """
        source = self._array_source(split)
        return source.x, source.y

    @property
    def data(self) -> ArraySplits:
        """All splits as read-only NumPy arrays that share the task's memory.

        `Task.from_arrays(model=…, **task.data)` makes a task from them again, without a copy.
        Pickling a task uses the same arrays, so `ray.put(task)` stores them once and every worker
        on a node reads them in place. A `DataError` is raised if they come from loaders.
        """
        arrays = {split: self._array_source(split).numpy() for split in self.splits}
        return cast(ArraySplits, arrays)

    def to(self, device: str | torch.device, precision: Precision | None = None) -> "Task":
        """Return the task with models and batches on another device, perhaps with a precision.

        Raises:
            DeviceError: there is no such device; see `devices.chosen_device`.
            UnknownNameError: there is no such precision.
        """
        check_precision(precision)
        place = chosen_device(device)
        sources = {split: source.to(place) for split, source in self.sources.items()}
        precision = precision or self.precision
        return replace(self, sources=sources, device=place, precision=precision)

    def __getstate__(self) -> dict[str, Any]:
        """A copy from a pickle is on the CPU, as its sources are; `to` moves it."""
        return {**self.__dict__, "device": torch.device("cpu")}

    def __repr__(self) -> str:
        return f"Task({self.name!r}, splits={', '.join(self.splits)}, device={self.device})"

    def _source(self, split: Split) -> Source:
        if split not in self.sources:
            raise UnknownNameError(f"split in task {self.name!r} called", split, self.sources)
        return self.sources[split]

    def _array_source(self, split: Split) -> ArraySource:
        return in_memory(self._source(split), split, self.name)
