"""Streams of (x, y) events from arrays, with drift at known events, or from river's data sets."""

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
        kind: "labels" permutes the classes, which makes learned predictions wrong; "features"
            permutes the inputs; "rotation" rotates square images by 90 degrees.
        width: the number of events over which the drift sets in. 0 is abrupt: every event from
            `at` on is changed. w > 0 is gradual: event t is changed with probability
            (t − at + 1)/w, and from `at + w` on every event is changed.
        seed: seed of the permutation and of the draws of a gradual drift.

    Raises:
        ValueError: a number is negative.
        UnknownNameError: the kind is unknown.
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
    """A stream of the rows of arrays: shuffled, repeated as often as needed, with optional drift.

    Every iteration yields the same events.

    Args:
        x: the inputs, (rows, …).
        y: the targets, one per row. A drift of labels needs (rows,) classes 0 … C−1.
        num_events: the length of the stream. Every row occurs once before any occurs again. None
            means one pass over the rows.
        drifts: the drifts of the stream; they add up.
        seed: seed of the order of the rows.

    Raises:
        DataError: there are no rows, x and y have different numbers of rows, or a drift is
            impossible with these data.

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
            raise DataError(
                f"x has {len(self._x)} rows and y {len(self._y)}; they need the same number, >= 1"
            )
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
    """A river data set or generator as a stream of arrays.

    Features become float32, in the order of the first event. Classes become 0, 1, … in the order
    in which they first occur. Targets of a regression become float32.

    Args:
        name: a class of `river.datasets` or `river.datasets.synth`; case is ignored.
        num_events: the largest number of events. None means all events; a generator then never
            ends.
        **settings: river's settings of the data set, such as `seed` for a generator.

    Attributes:
        classes: the classes seen so far; the label of a class is its position in this list.

    Raises:
        UnknownNameError: river has no such data set.
        DataError: the data set must be downloaded first, or (while iterating) a feature is missing
            or not numeric.
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
    """The effect of one drift on an event: index arrays into its features and classes."""

    features: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None

    def apply(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the event after the drift."""
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
            raise DataError(
                f"a drift of labels needs classes 0, 1, …; y is {y.dtype} of shape {y.shape}"
            )
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
    """Return a permutation that moves every element: a random cycle through all of them."""
    if size < 2:
        raise DataError(
            f"a permutation of {size} changes nothing; a drift needs at least 2 classes or features"
        )
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
