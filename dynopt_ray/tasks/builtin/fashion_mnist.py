"""Tasks on Fashion-MNIST: 70,000 images of clothes, 28×28 pixels, 10 classes (Xiao et al. 2017).

The IDX files are read from the option `data_dir` if it is given. Otherwise they are searched for
in the directory that the environment variable `DYNOPT_DATA` names, in its subdirectory
fashion-mnist, and in the directory of the Debian package dataset-fashion-mnist. If none of these
has all files, the data are downloaded from OpenML.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.errors import DataError
from dynopt_ray.tasks.builtin.idx import read_idx
from dynopt_ray.tasks.builtin.models import mlp_factory, vgg_factory
from dynopt_ray.tasks.builtin.splits import array_splits, split_rows, standardised_images
from dynopt_ray.tasks.builtin.subsets import chosen_rows, count_classes
from dynopt_ray.tasks.sources import ArraySplits
from dynopt_ray.tasks.task import Task

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The files that a data directory must hold, each plain or compressed with the suffix `.gz`."""

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")

_NUM_TRAIN, _NUM_TEST = 60_000, 10_000
_VALIDATION_FRACTION = 1 / 6


def fashion_mnist_mlp(
    *,
    hidden: Sequence[int] = (128,),
    batch_size: int = 128,
    rows: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> Task:
    """A task on the images as rows of 784 pixels, with a network of linear layers.

    The default network, 784-128-10, is that of the source article ("Dynamic optimisation of
    neural networks: pruning, learning-rate schedules, dynamic structure, online learning").

    Args:
        hidden: the width of each hidden layer; the layers are named "0", "2", ….
        batch_size: rows per batch.
        rows: [first, end] of the training images to use, in the order of the data set. The test
            images are not affected. Default: all.
        classes: the classes to tell apart, also in the test images; they are numbered in this
            order. Default: all.
        seed: seed of the stratified split of the training images into 5/6 train and 1/6
            validation.
        data_dir: the directory of the IDX files. Default: search for them, or download the data.
        device: the device for models and data.

    Raises:
        DataError: the files are missing, truncated or not Fashion-MNIST, or the download failed.
        TypeError: `hidden`, `rows` or `classes` is not a list of whole numbers.
        ValueError: a number is out of range.
    """
    return Task.from_arrays(
        model=mlp_factory(784, hidden, count_classes(classes, known=10)),
        **_splits((784,), seed, data_dir, rows, classes),
        batch_size=batch_size,
        name="fashion-mnist-mlp",
        device=device,
    )


def fashion_mnist_cnn(
    *,
    channels: Sequence[int] = (32, 64),
    hidden: int | None = 128,
    batch_size: int = 128,
    rows: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> Task:
    """A task on the images as 1×28×28 pixels, with a small VGG network.

    Args:
        channels: the width of each block of two convolutions.
        hidden: the width of the linear layer after the blocks; None leaves it out.
        batch_size: rows per batch.
        rows: [first, end] of the training images to use, in the order of the data set. The test
            images are not affected. Default: all.
        classes: the classes to tell apart, also in the test images; they are numbered in this
            order. Default: all.
        seed: seed of the stratified split of the training images into 5/6 train and 1/6
            validation.
        data_dir: the directory of the IDX files. Default: search for them, or download the data.
        device: the device for models and data.

    Raises:
        DataError: the files are missing, truncated or not Fashion-MNIST, or the download failed.
        TypeError: a width is not a whole number, or `rows` or `classes` is not a list of them.
        ValueError: a number is out of range, or there are more than four blocks.
    """
    return Task.from_arrays(
        model=vgg_factory(28, channels, hidden, count_classes(classes, known=10)),
        **_splits((1, 28, 28), seed, data_dir, rows, classes),
        batch_size=batch_size,
        name="fashion-mnist-cnn",
        device=device,
    )


def read_fashion_mnist(data_dir: str | Path | None = None) -> dict[str, NDArray[np.uint8]]:
    """Return the four arrays by the names in `FILES`, read from files or else from OpenML.

    Raises:
        DataError: `data_dir` lacks a file, a file is truncated or not Fashion-MNIST, or no files
            were found and the download failed.
    """
    if data_dir is not None:
        missing = [name for name in FILES if _file(Path(data_dir), name) is None]
        if missing:
            raise DataError(f"data_dir {str(data_dir)!r} lacks {', '.join(missing)} (plain or .gz)")
        return _read(Path(data_dir))
    found = fashion_mnist_directory()
    return _download(_search_path()) if found is None else _read(found)


def fashion_mnist_directory() -> Path | None:
    """Return the directory in which the IDX files are found, or None if they are not there."""
    for directory in _search_path():
        if all(_file(directory, name) for name in FILES):
            return directory
    return None


def _splits(
    shape: tuple[int, ...],
    seed: int,
    data_dir: str | Path | None,
    rows: Sequence[int] | None,
    classes: Sequence[int] | None,
) -> ArraySplits:
    data = read_fashion_mnist(data_dir)
    images, clothes, test_images, test_clothes = (data[name] for name in FILES)
    chosen = chosen_rows(clothes, rows=rows, classes=classes)
    tested = chosen_rows(test_clothes, rows=None, classes=classes)
    images, labels = images[chosen.rows], chosen.labels
    index = split_rows(
        len(labels), validation=_VALIDATION_FRACTION, test=None, seed=seed, labels=labels
    )
    pixels = {split: images[places] for split, places in index.items()}
    targets = {split: labels[places] for split, places in index.items()}
    pixels["test"], targets["test"] = test_images[tested.rows], tested.labels
    x = standardised_images(pixels)
    return array_splits({split: values.reshape(-1, *shape) for split, values in x.items()}, targets)


def _search_path() -> list[Path]:
    named = os.environ.get("DYNOPT_DATA")
    own = [Path(named), Path(named) / "fashion-mnist"] if named else []
    return [*own, DEBIAN_DIR]


def _file(directory: Path, name: str) -> Path | None:
    paths = (directory / name, directory / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read(directory: Path) -> dict[str, NDArray[np.uint8]]:
    arrays = {name: read_idx(_file(directory, name) or directory / name) for name in FILES}
    for images, labels in (FILES[:2], FILES[2:]):
        num_images = len(arrays[images])
        if arrays[images].shape != (num_images, 28, 28) or arrays[labels].shape != (num_images,):
            raise DataError(
                f"{directory} is not Fashion-MNIST: {images} has shape {arrays[images].shape} and "
                f"{labels} {arrays[labels].shape}"
            )
    return arrays


def _download(searched: Sequence[Path]) -> dict[str, NDArray[np.uint8]]:
    from sklearn.datasets import fetch_openml  # type: ignore[import-untyped]

    try:
        bunch = fetch_openml("Fashion-MNIST", version=1, as_frame=False, parser="auto")
        pixels = np.asarray(bunch.data).reshape(_NUM_TRAIN + _NUM_TEST, 28, 28).astype(np.uint8)
        labels = np.asarray(bunch.target).astype(np.uint8)
    except Exception as error:
        # Catch everything: whether network, cache or server failed, the remedies are the same.
        raise DataError(
            f"no Fashion-MNIST files in {', '.join(map(str, searched))}, and the download from "
            f"OpenML failed ({type(error).__name__}: {error}). Give the option data_dir, set "
            f"DYNOPT_DATA to a directory with {', '.join(FILES)} (plain or .gz), or install the "
            f"Debian package dataset-fashion-mnist"
        ) from error
    # OpenML keeps the original order: training images first.
    parts = (pixels[:_NUM_TRAIN], labels[:_NUM_TRAIN], pixels[_NUM_TRAIN:], labels[_NUM_TRAIN:])
    return dict(zip(FILES, parts, strict=True))
