"""Generated classification problems: many different tasks that load in milliseconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import FloatArray
from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks.builtin.models import mlp_factory
from dynopt_ray.tasks.builtin.padding import check_pad_to, padded_columns
from dynopt_ray.tasks.builtin.splits import array_splits, split_rows
from dynopt_ray.tasks.task import Task

ClassOrigin = Literal["clusters", "teacher"]
"""What decides the classes: clusters of inputs, or a random network (the teacher)."""

_HELD_FRACTION = 0.2
_MOST_EXTRA_CLUSTERS = 3
_TEACHER_WIDTH = 16
_BALANCING_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a generated classification problem is like.

    Attributes:
        origin: "clusters" draws each class from Gaussian clusters around corners of a hypercube
            (`sklearn.datasets.make_classification`). "teacher" draws inputs from one Gaussian and
            gives each the class that a random network finds most likely.
        features: number of columns.
        classes: number of classes; they have about the same number of rows.
        rows: number of rows of all splits together.
        label_noise: fraction of rows, in all splits, whose class is replaced by another one.
        redundancy: fraction of columns that are random linear combinations of the other columns.
        nonlinearity: from 0 to 1. Clusters: each class has one cluster at 0 and four at 1.
            Teacher: the scores of classes are a linear map of the inputs at 0. At 1 they are those
            of a network with one hidden layer of ReLU units, without their linear part, so that a
            linear classifier does no better than chance. In between both are mixed.
        separation: distance between clusters, relative to that of scikit-learn. Only for clusters.
        seed: seed of all draws.

    Raises:
        UnknownNameError: there is no such origin.
        ValueError: a number is out of range.
        DataError: the columns that are not redundant are too few for so many clusters.
    """

    origin: ClassOrigin = "clusters"
    features: int = 32
    classes: int = 6
    rows: int = 2_000
    label_noise: float = 0.0
    redundancy: float = 0.25
    nonlinearity: float = 0.5
    separation: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.origin not in get_args(ClassOrigin):
            raise UnknownNameError("origin", str(self.origin), get_args(ClassOrigin))
        for name, least in (("features", 1), ("classes", 2), ("rows", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        for name in ("label_noise", "redundancy"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.nonlinearity <= 1:
            raise ValueError(f"nonlinearity is {self.nonlinearity}; it must be in [0, 1]")
        if not 0 < self.separation < math.inf:
            raise ValueError(f"separation is {self.separation}; it must be above 0 and finite")
        needed = self.classes * self.clusters_per_class
        if self.origin == "clusters" and needed > 2**self.informative:
            raise DataError(
                f"{needed} clusters need {math.ceil(math.log2(needed))} columns that are not "
                f"redundant, but there are {self.informative}; give more features, or less "
                f"redundancy or nonlinearity"
            )

    @property
    def informative(self) -> int:
        """The number of columns that are not redundant."""
        return max(1, round(self.features * (1 - self.redundancy)))

    @property
    def clusters_per_class(self) -> int:
        """The number of clusters of each class."""
        return 1 + round(_MOST_EXTRA_CLUSTERS * self.nonlinearity)

    def draw(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return all rows (rows, features), not standardised, and their classes (rows,)."""
        rng = np.random.default_rng(self.seed)
        x, y = self._clusters(rng) if self.origin == "clusters" else self._taught(rng)
        num_redundant = self.features - self.informative
        mixture = rng.standard_normal((self.informative, num_redundant))
        x = np.concatenate([x, x @ mixture / math.sqrt(self.informative)], axis=1)
        return x[:, rng.permutation(self.features)], _with_noise(y, self, rng)

    def _clusters(self, rng: np.random.Generator) -> tuple[FloatArray, NDArray[np.int64]]:
        from sklearn.datasets import make_classification  # type: ignore[import-untyped]

        x, y = make_classification(
            self.rows,
            self.informative,
            n_informative=self.informative,
            n_redundant=0,
            n_classes=self.classes,
            n_clusters_per_class=self.clusters_per_class,
            class_sep=self.separation,
            flip_y=0,
            random_state=int(rng.integers(2**32)),
        )
        return x, y.astype(np.int64)

    def _taught(self, rng: np.random.Generator) -> tuple[FloatArray, NDArray[np.int64]]:
        x = rng.standard_normal((self.rows, self.informative))
        linear = _scaled(x @ rng.standard_normal((self.informative, self.classes)))
        hidden = np.maximum(0, _scaled(x @ rng.standard_normal((self.informative, _TEACHER_WIDTH))))
        bent = hidden @ rng.standard_normal((_TEACHER_WIDTH, self.classes))
        bent = _scaled(bent - x @ np.linalg.lstsq(x, bent, rcond=None)[0])
        return x, _balanced((1 - self.nonlinearity) * linear + self.nonlinearity * bent)


def generated_mlp(
    *,
    origin: ClassOrigin = Problem.origin,
    features: int = Problem.features,
    classes: int = Problem.classes,
    rows: int = Problem.rows,
    label_noise: float = Problem.label_noise,
    redundancy: float = Problem.redundancy,
    nonlinearity: float = Problem.nonlinearity,
    separation: float = Problem.separation,
    seed: int = Problem.seed,
    hidden: Sequence[int] = (64, 32),
    pad_to: Sequence[int] | None = None,
    batch_size: int = 128,
    device: str = "cpu",
) -> Task:
    """A task on a generated classification problem, with a network of linear layers.

    Columns are standardised with the mean and deviation of the training rows.

    Args:
        origin: what decides the classes: "clusters" of inputs, or a random "teacher" network; see
            `Problem`.
        features: number of columns.
        classes: number of classes.
        rows: number of rows, split into 60 % train, 20 % validation and 20 % test.
        label_noise: fraction of rows, in all splits, whose class is replaced by another one.
        redundancy: fraction of columns that are linear combinations of the other columns.
        nonlinearity: from 0 to 1; see `Problem`.
        separation: distance between clusters; see `Problem`.
        seed: seed of the problem and of its split.
        hidden: the width of each hidden layer; the layers are named "0", "2", ….
        pad_to: [columns, classes]: append columns of zeros, and give the network outputs for
            classes that have no rows. Tasks of different sizes then have networks of the same
            input and output size, which can be trained as one stack.
        batch_size: rows per batch.
        device: the device for models and data.

    Raises:
        UnknownNameError: there is no such origin.
        TypeError: a number of things is not a whole number, or `hidden` no list of them.
        ValueError: a number is out of range, or `pad_to` is smaller than the task.
        DataError: there are too few rows for so many classes, or too few columns for so many
            clusters.
    """
    problem = Problem(
        origin=origin,
        features=features,
        classes=classes,
        rows=rows,
        label_noise=label_noise,
        redundancy=redundancy,
        nonlinearity=nonlinearity,
        separation=separation,
        seed=seed,
    )
    columns, outputs = check_pad_to(pad_to, columns=features, classes=classes)
    x, y = problem.draw()
    index = split_rows(rows, validation=_HELD_FRACTION, test=_HELD_FRACTION, seed=seed, labels=y)
    mean, deviation = x[index["train"]].mean(0), x[index["train"]].std(0)
    x = padded_columns((x - mean) / deviation, columns).astype(np.float32)
    return Task.from_arrays(
        model=mlp_factory(columns, hidden, outputs),
        **array_splits(
            {split: x[places] for split, places in index.items()},
            {split: y[places] for split, places in index.items()},
        ),
        batch_size=batch_size,
        name="generated-mlp",
        device=device,
    )


def _scaled(values: FloatArray) -> FloatArray:
    """Return columns of mean 0 and deviation 1."""
    scaled: FloatArray = (values - values.mean(0)) / values.std(0)
    return scaled


def _balanced(scores: FloatArray) -> NDArray[np.int64]:
    """Return the class with the highest score of each row, after shifting scores.

    The scores of each class are shifted until all classes have about the same number of rows.
    """
    num_rows, num_classes = scores.shape
    shift = np.zeros(num_classes)
    for step in range(_BALANCING_STEPS):
        counts = np.bincount((scores + shift).argmax(1), minlength=num_classes)
        shift -= 0.5 * 0.9**step * np.log((counts + 1) * num_classes / num_rows)
    classes: NDArray[np.int64] = (scores + shift).argmax(1)
    return classes


def _with_noise(
    y: NDArray[np.int64], problem: Problem, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return labels of which an exact number was replaced by another class."""
    wrong = rng.permutation(len(y))[: round(problem.label_noise * len(y))]
    noisy = y.copy()
    noisy[wrong] = (y[wrong] + rng.integers(1, problem.classes, len(wrong))) % problem.classes
    return noisy
