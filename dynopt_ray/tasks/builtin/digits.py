"""Tasks on scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, 10 classes."""

import math
from collections.abc import Callable, Sequence

from torch import nn

from dynopt_ray.tasks.builtin.models import mlp_factory, vgg_factory
from dynopt_ray.tasks.builtin.padding import check_pad_to, padded_columns
from dynopt_ray.tasks.builtin.splits import array_splits, split_rows, standardised_images
from dynopt_ray.tasks.builtin.subsets import chosen_rows, count_classes
from dynopt_ray.tasks.builtin.transformers import row_transformer_factory
from dynopt_ray.tasks.sources import ArraySplits
from dynopt_ray.tasks.task import Task

_NUM_PIXELS = 64
_HELD_FRACTION = 0.2


def digits_mlp(
    *,
    hidden: Sequence[int] = (64, 32),
    rows: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    pad_to: Sequence[int] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Task:
    """A task on the digits as rows of 64 pixels, with a network of linear layers.

    Args:
        hidden: the width of each hidden layer; the layers are named "0", "2", ….
        rows: [first, end] of the images to use, in the order of the data set. Default: all.
        classes: the digits to tell apart; they are numbered in this order. Default: all.
        pad_to: [columns, classes]: append columns of zeros to the pixels, and give the network
            outputs for classes that have no images; see `generated_mlp`.
        batch_size: rows per batch.
        seed: seed of the stratified split into 60 % train, 20 % validation and 20 % test.
        device: the device for models and data.

    Raises:
        TypeError: `hidden`, `rows`, `classes` or `pad_to` is not a list of whole numbers.
        ValueError: a number is out of range.
        DataError: there are too few images of a class.
    """
    columns, outputs = check_pad_to(
        pad_to, columns=_NUM_PIXELS, classes=count_classes(classes, known=10)
    )
    splits = _splits((columns,), seed, rows, classes)
    return _task("digits-mlp", mlp_factory(columns, hidden, outputs), splits, batch_size, device)


def digits_cnn(
    *,
    channels: Sequence[int] = (16, 32),
    hidden: int | None = 64,
    rows: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Task:
    """A task on the digits as images of 1×8×8 pixels, with a small convolutional network.

    Args:
        channels: the width of each block of two convolutions.
        hidden: the width of the linear layer after the blocks; None leaves it out.
        rows: see `digits_mlp`.
        classes: see `digits_mlp`.
        batch_size: rows per batch.
        seed: seed of the stratified split into 60 % train, 20 % validation and 20 % test.
        device: the device for models and data.

    Raises:
        TypeError: a width is not a whole number, or `rows` or `classes` is not a list of them.
        ValueError: a number is out of range, or there are more than three blocks.
        DataError: there are too few images of a class.
    """
    splits = _splits((1, 8, 8), seed, rows, classes)
    model = vgg_factory(8, channels, hidden, count_classes(classes, known=10))
    return _task("digits-cnn", model, splits, batch_size, device)


def digits_transformer(
    *,
    width: int = 32,
    num_heads: int = 4,
    feedforward: int = 64,
    num_blocks: int = 2,
    rows: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Task:
    """A task on the digits with a small transformer, whose tokens are the 8 rows of an image.

    The width of the tokens, the heads and the feed-forward network of each block can be resized.

    Args:
        width: the width of tokens.
        num_heads: attention heads per block; they divide `width`.
        feedforward: the hidden width of the feed-forward network of each block.
        num_blocks: number of blocks.
        rows: see `digits_mlp`.
        classes: see `digits_mlp`.
        batch_size: rows per batch.
        seed: seed of the stratified split into 60 % train, 20 % validation and 20 % test.
        device: the device for models and data.

    Raises:
        TypeError: a size is not a whole number, or `rows` or `classes` is not a list of them.
        ValueError: a number is out of range, or the heads do not divide the width.
        DataError: there are too few images of a class.
    """
    splits = _splits((8, 8), seed, rows, classes)
    model = row_transformer_factory(
        num_rows=8,
        row_size=8,
        width=width,
        num_heads=num_heads,
        feedforward=feedforward,
        num_blocks=num_blocks,
        num_outputs=count_classes(classes, known=10),
    )
    return _task("digits-transformer", model, splits, batch_size, device)


def _task(
    name: str,
    model: Callable[[], nn.Module],
    splits: ArraySplits,
    batch_size: int,
    device: str,
) -> Task:
    return Task.from_arrays(model=model, **splits, batch_size=batch_size, name=name, device=device)


def _splits(
    shape: tuple[int, ...],
    seed: int,
    rows: Sequence[int] | None,
    classes: Sequence[int] | None,
) -> ArraySplits:
    """Return images of a shape; if it has more numbers than the images, the rest are zeros."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, digits = load_digits(return_X_y=True)
    chosen = chosen_rows(digits, rows=rows, classes=classes)
    pixels, labels = pixels[chosen.rows], chosen.labels
    index = split_rows(
        len(labels), validation=_HELD_FRACTION, test=_HELD_FRACTION, seed=seed, labels=labels
    )
    images = standardised_images({split: pixels[places] for split, places in index.items()})
    x = {
        split: padded_columns(values, math.prod(shape)).reshape(-1, *shape)
        for split, values in images.items()
    }
    return array_splits(x, {split: labels[places] for split, places in index.items()})
