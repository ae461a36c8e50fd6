"""Streams: arrays or river's data sets as (x, y) events, with drift of a known kind and place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynopt_ray.errors import DataError, UnknownNameError

DriftKind = Literal["labels", "features", "rotation"]


@dataclass(frozen=True)
class Drift:
    """A change of the concept at a known event.

    Attributes:
        at: the first event that may be changed, counted from 0.
        kind: "labels" permutes the classes, so that what was learned is wrong; "features"
            permutes the inputs; "rotation" turns square images by a quarter.
        width: 0 changes every event from `at` on (abrupt); w > 0 changes event t with
            probability (t − at + 1)/w until all are changed at `at + w` (gradual).
        seed: of the permutation and of the gradual draw.

    Raises:
        ValueError: a negative number, or a kind that does not exist.
    """

    at: int
    kind: DriftKind = "labels"
    width: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.at < 0 or self.width < 0:
            raise ValueError(f"Drift: at={self.at}, width={self.width}; both must be >= 0")
        if self.kind not in ("labels", "features", "rotation"):
            raise UnknownNameError("kind of drift", self.kind, ("labels", "features", "rotation"))


class ArrayStream:
    """Rows of arrays as a stream: shuffled, repeated as often as needed, drifting where told.

    Iterating anew gives the same events again.

    Args:
        x: (rows, …).
        y: (rows,) classes 0 … C−1 where a drift permutes labels.
        num_events: the stream's length; every row comes once before any comes again. None is
            one pass.
        drifts: changes; they add up.
        seed: of the order.

    Raises:
        DataError: no rows, rows of unequal number, or a drift that the data cannot have.

    Example:
        >>> stream = ArrayStream([[0.0], [1.0]], [0, 1], drifts=[Drift(at=2)], num_events=4)
        >>> [int(y) == int(x[0]) for x, y in stream]
        [True, True, False, False]
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        num_events: int | None = None,
        drifts: Sequence[Drift] = (),
        seed: int = 0,
    ) -> None:
        self._x, self._y = np.asarray(x), np.asarray(y)
        if not len(self._x) or len(self._x) != len(self._y):
            raise DataError(f"x has {len(self._x)} rows and y {len(self._y)}; give as many, >= 1")
        self._num_events = len(self._x) if num_events is None else num_events
        self.drifts = tuple(drifts)
        self._seed = seed
        self._changes = [_build_change(drift, self._x, self._y) for drift in self.drifts]

    def __len__(self) -> int:
        return self._num_events

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        order_rng = np.random.default_rng(self._seed)
        drift_rngs = [np.random.default_rng([1, drift.seed]) for drift in self.drifts]
        order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        for event in range(self._num_events):
            place = event % len(self._x)
            if place == 0:
                order = order_rng.permutation(len(self._x))
            x, y = self._x[order[place]], self._y[order[place]]
            for drift, change, rng in zip(self.drifts, self._changes, drift_rngs, strict=True):
                age = event - drift.at
                if age >= 0 and (age >= drift.width or rng.random() < (age + 1) / drift.width):
                    x, y = change.apply(x, y)
            yield np.asarray(x), np.asarray(y)


class RiverStream:
    """A data set or generator of river's as a stream of arrays.

    Features are ordered as in the first event and become float32; classes become 0, 1, … in
    the order in which they appear, and numbers (regression) stay float32.

    Args:
        name: a class of `river.datasets` or `river.datasets.synth`, in any spelling of case.
        num_events: the most events; None is all, which generators never reach.
        **settings: river's settings of the data set, `seed` for generators.

    Attributes:
        classes: the classes seen so far, in order; their places are the labels.

    Raises:
        UnknownNameError: river has no such data set.
        DataError: it has to be downloaded first.
    """

    def __init__(self, name: str, *, num_events: int | None = None, **settings: Any) -> None:
        self.classes: list[Any] = []
        self._num_events = num_events
        self._data = _river_dataset(name)(**settings)
        self._is_regression = self._data.task == "Regression"
        if not getattr(self._data, "is_downloaded", True):
            raise DataError(f"river's {name} is not on this machine; call its download() once")

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        names: list[str] | None = None
        for event, (features, target) in enumerate(self._data):
            if event == self._num_events:
                return
            names = names or list(features)
            try:
                x = np.array([features[name] for name in names], dtype=np.float32)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"event {event} of {self._data} is not numeric: {error}") from None
            yield x, self._label(target)

    def _label(self, target: Any) -> NDArray[Any]:
        if self._is_regression:
            return np.asarray(target, dtype=np.float32)
        if target not in self.classes:
            self.classes.append(target)
        return np.asarray(self.classes.index(target))


@dataclass(frozen=True)
class _Change:
    """What one drift does to an event: index arrays into its features and classes."""

    features: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None

    def apply(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The event as it is after the drift."""
        if self.features is not None:
            x = x.reshape(-1)[self.features].reshape(x.shape)
        if self.labels is not None:
            y = self.labels[y].astype(y.dtype)
        return x, y


def _build_change(drift: Drift, x: NDArray[Any], y: NDArray[Any]) -> _Change:
    rng = np.random.default_rng(drift.seed)
    num_features = int(np.prod(x.shape[1:]))
    if drift.kind == "labels":
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise DataError(f"a drift of labels needs classes 0, 1, …; y is {y.dtype} {y.shape}")
        return _Change(labels=_derangement(int(y.max()) + 1, rng))
    if drift.kind == "features":
        return _Change(features=_derangement(num_features, rng))
    side = x.shape[-1] if x.ndim > 2 else round(num_features**0.5)
    if (
        side * side == 0
        or num_features % (side * side)
        or x.shape[1:][-2:]
        not in (
            (side, side),
            (side * side,),
        )
    ):
        raise DataError(f"a rotation needs square images; events have shape {x.shape[1:]}")
    pixels = np.arange(num_features).reshape(-1, side, side)
    return _Change(features=np.rot90(pixels, axes=(1, 2)).reshape(-1))


def _derangement(size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A permutation that leaves nothing in its place: a random cycle through all."""
    if size < 2:
        raise DataError(f"a permutation of {size} changes nothing; the data need at least 2")
    cycle = rng.permutation(size)
    permutation = np.empty(size, dtype=np.int64)
    permutation[cycle] = np.roll(cycle, 1)
    return permutation


def _river_dataset(name: str) -> Any:
    from river import datasets

    known = {
        attribute.lower(): getattr(module, attribute)
        for module in (datasets.synth, datasets)
        for attribute in module.__all__
        if attribute[0].isupper()
    }
    if name.lower() not in known:
        raise UnknownNameError("river data set", name, (kind.__name__ for kind in known.values()))
    return known[name.lower()]
