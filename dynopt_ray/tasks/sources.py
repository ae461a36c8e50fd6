"""Sources of the batches of one split: arrays in memory, or a loader."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NotRequired, Protocol, TypedDict

import torch
from numpy.typing import NDArray
from torch import Tensor

from dynopt_ray.criteria import Batch
from dynopt_ray.errors import DataError
from dynopt_ray.structure import Inputs
from dynopt_ray.tasks.batches import batch_indices, epoch_order, take_rows
from dynopt_ray.tasks.convert import as_features, as_targets, wrap
from dynopt_ray.tasks.objectives import TargetKind
from dynopt_ray.transfers import to_device

Split = Literal["train", "validation", "test"]
"""The name of a part of a task's data."""

Arrays = tuple[Any, Any]
"""(x, y): torch tensors, NumPy arrays, or pandas frames and series."""


class ArraySplits(TypedDict):
    """Arrays by split: the keyword arguments of `Task.from_arrays`."""

    train: Arrays
    validation: Arrays
    test: NotRequired[Arrays]


Loader = Iterable[Any] | Callable[[], Iterable[Any]]
"""An iterable of batches that can be iterated over repeatedly, or a function that returns one."""

TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""The keys that may hold the targets in a batch that is a dict; the first one found is used."""


class Source(Protocol):
    """The batches of one split."""

    def batches(self, batch_size: int | None, generator: torch.Generator | None) -> Iterator[Batch]:
        """Yield each row once."""

    def stream(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches without end, for training."""

    def head(self, num_rows: int) -> Batch:
        """The first rows."""

    def check_labels(self, targets: Tensor, num_classes: int) -> None:
        """Refuse labels that are not below `num_classes`; the error names their place."""

    def to(self, device: torch.device) -> "Source":
        """The same rows, delivered on another device."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A split that is held in memory.

    The arrays are pickled as NumPy buffers, which Ray's object store shares between processes
    without a copy. A copy from a pickle is on the CPU: the process that reads it may have no GPU,
    or other ones.

    Attributes:
        split: the name of the split, for messages.
        x: inputs, rows first.
        y: targets, one row per row of x.
        batch_size: the default number of rows per batch.
    """

    split: Split
    x: Tensor
    y: Tensor
    batch_size: int

    def batches(self, batch_size: int | None, generator: torch.Generator | None) -> Iterator[Batch]:
        """Yield each row once: in order, or shuffled by a CPU generator."""
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size is {size}; it must be at least 1")
        return self._batches(size, generator)

    def _batches(self, size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        if generator is None:
            for start in range(0, len(self.y), size):
                yield self.x[start : start + size], self.y[start : start + size]
            return
        order = to_device(epoch_order(len(self.y), generator), self.y.device)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield self.x[rows], self.y[rows]

    def stream(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches without end, with the rows in the order of `batch_indices`."""
        size = self.batch_size if batch_size is None else batch_size
        for rows in batch_indices(len(self.y), size, generator, device=self.y.device):
            yield self.x[rows], self.y[rows]

    def head(self, num_rows: int) -> Batch:
        """The first rows."""
        return self.x[:num_rows], self.y[:num_rows]

    def check_labels(self, targets: Tensor, num_classes: int) -> None:  # noqa: ARG002
        """Check the labels of the whole split, not only `targets`."""
        if self._largest_label >= num_classes:
            _check_labels(self.y, num_classes, f"{self.split} y")

    @cached_property
    def _largest_label(self) -> int:
        return int(self.y.max())

    def to(self, device: torch.device) -> "ArraySource":
        """The arrays on another device."""
        moved = replace(self, x=to_device(self.x, device), y=to_device(self.y, device))
        if not self.y.is_floating_point():
            vars(moved)["_largest_label"] = self._largest_label  # without reading it from there
        return moved

    def numpy(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read-only views of the arrays (copies if they are on a GPU)."""
        views = self.x.cpu().numpy().view(), self.y.cpu().numpy().view()
        for view in views:
            view.flags.writeable = False
        return views

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_numpy, (self.split, *self.numpy(), self.batch_size)


def _from_numpy(split: Split, x: NDArray[Any], y: NDArray[Any], batch_size: int) -> ArraySource:
    return ArraySource(split, wrap(x), wrap(y), batch_size)


@dataclass(eq=False)
class LoaderSource:
    """A split from a loader, which decides the size and the order of its batches.

    Attributes:
        split: the name of the split, for messages.
        loader: see `Loader`; a batch is (inputs, targets) or a dict with one of `TARGET_KEYS`.
        kind: the kind of targets that the loss needs; None if it is unknown.
        device: the device that batches are moved to.
    """

    split: Split
    loader: Loader
    kind: TargetKind | None
    device: torch.device
    _position: Iterator[Batch] | None = field(default=None, init=False, repr=False)
    _number: int = field(default=0, init=False, repr=False)
    _targets: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def batches(
        self,
        batch_size: int | None,
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> Iterator[Batch]:
        """One pass over the loader, in the loader's order; a generator does not change it."""
        if batch_size is not None:
            raise DataError(f"the {self.split} loader makes its own batches; leave out batch_size")
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        loader = self.loader() if callable(self.loader) else self.loader
        empty = True
        for self._number, batch in enumerate(loader):
            empty = False
            inputs, targets = self._read(batch)
            self._targets = to_device(targets, self.device), targets
            yield _moved(inputs, self.device), self._targets[0]
        if empty:
            raise DataError(
                f"the {self.split} loader gives no batches; if it can be iterated over only "
                f"once, pass a function that makes a new iterator"
            )

    def stream(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches of repeated passes; a later call continues where the last one stopped.

        If each call started a new pass, short calls would only ever see the first batches.
        """
        while True:
            if self._position is None:
                self._position = self.batches(batch_size, generator)
            # `yield from` would close the pass together with this generator.
            for batch in self._position:  # noqa: UP028
                yield batch
            self._position = None

    def head(self, num_rows: int) -> Batch:
        """The first rows of a new pass; the state of torch's global generator is restored."""
        with torch.random.fork_rng(devices=[]):
            inputs, targets = next(self.batches(None, None))
        return take_rows(inputs, num_rows), targets[:num_rows]

    def check_labels(self, targets: Tensor, num_classes: int) -> None:
        """Check the labels of the latest batch, before they were moved to the device."""
        if self._targets is not None and targets is self._targets[0]:
            targets = self._targets[1]
        _check_labels(targets, num_classes, self._where("y"))

    def to(self, device: torch.device) -> "LoaderSource":
        """The same loader, with its batches moved to another device."""
        return LoaderSource(self.split, self.loader, self.kind, device)

    def _where(self, part: str) -> str:
        return f"{self.split} batch {self._number}, {part}"

    def _read(self, batch: Any) -> Batch:
        inputs, targets = self._parts(batch)
        y = as_targets(targets, kind=self.kind, where=self._where("y"))
        x: Inputs
        if isinstance(inputs, Mapping):
            x = {str(key): self._features(value, str(key)) for key, value in inputs.items()}
        elif isinstance(inputs, list | tuple):
            x = tuple(self._features(value, f"x[{i}]") for i, value in enumerate(inputs))
        else:
            x = self._features(inputs, "x")
        parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else (x,)
        for part in parts:
            if len(part) != len(y):
                raise DataError(
                    f"{self.split} batch {self._number}: {len(part)} rows of inputs and "
                    f"{len(y)} of targets"
                )
        return x, y

    def _parts(self, batch: Any) -> tuple[Any, Any]:
        """The inputs and targets of a batch in any of the forms that loaders use."""
        if isinstance(batch, Mapping):
            for key in TARGET_KEYS:
                if key in batch:
                    inputs = {name: value for name, value in batch.items() if name != key}
                    # A single column is passed to the model by position, whatever its name.
                    return (next(iter(inputs.values())) if len(inputs) == 1 else inputs), batch[key]
            raise DataError(
                f"{self.split} batch {self._number} has the keys {', '.join(map(str, batch))}; "
                f"one of {', '.join(TARGET_KEYS)} must hold the targets"
            )
        if isinstance(batch, list | tuple) and len(batch) == 2:
            return batch[0], batch[1]
        raise DataError(
            f"{self.split} batch {self._number} is a {type(batch).__name__}; a batch must be "
            f"(inputs, targets) or a dict"
        )

    def _features(self, value: Any, name: str) -> Tensor:
        return as_features(value, where=self._where(name))

    def __getstate__(self) -> dict[str, Any]:
        # The position in a pass cannot be pickled; the copy starts a new pass. As for arrays, its
        # device is the CPU.
        fresh = {"_position": None, "_targets": None, "device": torch.device("cpu")}
        return {**self.__dict__, **fresh}


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, dict):
        return {name: to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(to_device(value, device) for value in inputs)
    return to_device(inputs, device)


def _check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    largest = int(labels.max())
    if largest >= num_classes:
        row = int((labels == largest).nonzero()[0][0])
        raise DataError(
            f"{where}, row {row}: label {largest}, but the model has {num_classes} outputs, for "
            f"the classes 0 … {num_classes - 1}. Give the model {largest + 1} outputs, or correct "
            "the label"
        )


def array_sources(
    arrays: Mapping[Split, Arrays | None], *, kind: TargetKind | None, batch_size: int
) -> dict[Split, ArraySource]:
    """Make checked sources of the given splits.

    Raises:
        DataError: arrays are empty, do not match or cannot be learned from.
    """
    sources = {
        split: _array_source(split, pair, kind, batch_size)
        for split, pair in arrays.items()
        if pair is not None
    }
    for source in sources.values():
        _check_alike(sources["train"], source)
    return sources


def loader_sources(
    loaders: Mapping[Split, Loader | None], *, kind: TargetKind | None, device: torch.device
) -> dict[Split, LoaderSource]:
    """Make sources of the given splits; batches are checked when they are read.

    Raises:
        TypeError: a loader cannot be iterated over.
        DataError: a loader can be iterated over only once.
    """
    given = {split: loader for split, loader in loaders.items() if loader is not None}
    for split, loader in given.items():
        _check_loader(split, loader)
    return {split: LoaderSource(split, loader, kind, device) for split, loader in given.items()}


def _check_loader(split: Split, loader: object) -> None:
    if callable(loader):
        return
    if not hasattr(loader, "__iter__"):
        raise TypeError(f"the {split} loader, {loader!r}, cannot be iterated over")
    if iter(loader) is loader:
        raise DataError(
            f"the {split} loader is a {type(loader).__name__}, which is used up after one pass; "
            f"pass a list, a DataLoader, or a function that makes a new iterator"
        )


def _array_source(
    split: Split, arrays: Arrays, kind: TargetKind | None, batch_size: int
) -> ArraySource:
    if not isinstance(arrays, tuple | list) or len(arrays) != 2:
        raise DataError(f"{split} must be a pair (x, y), not {type(arrays).__name__}")
    x = as_features(arrays[0], where=f"{split} x")
    y = as_targets(arrays[1], kind=kind, where=f"{split} y")
    if len(x) != len(y):
        raise DataError(f"{split}: x has {len(x)} rows and y has {len(y)}; give one y per x")
    return ArraySource(split, x, y, batch_size)


def in_memory(source: Source, split: Split, name: str) -> ArraySource:
    """Return a source of arrays.

    Raises:
        DataError: the split of this task comes from a loader.
    """
    if not isinstance(source, ArraySource):
        raise DataError(
            f"task {name!r} reads its {split} split from a loader, so there are no arrays; if the "
            "data fit in memory, make the task with Task.from_arrays"
        )
    return source


def _check_alike(train: ArraySource, other: ArraySource) -> None:
    for part, ours, theirs in (("x", train.x, other.x), ("y", train.y, other.y)):
        if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
            raise DataError(
                f"{other.split} {part} has rows of {theirs.dtype}, shape "
                f"{tuple(theirs.shape[1:])}, but those of train have {ours.dtype}, shape "
                f"{tuple(ours.shape[1:])}"
            )
