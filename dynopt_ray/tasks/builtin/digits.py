"""Tasks on scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, 10 classes."""

from collections.abc import Sequence

from dynopt_ray.tasks.builtin.models import mlp_factory, vgg_factory
from dynopt_ray.tasks.builtin.splits import array_splits, split_rows, standardised_images
from dynopt_ray.tasks.sources import ArraySplits
from dynopt_ray.tasks.task import Task

_HELD_FRACTION = 0.2


def digits_mlp(
    *,
    hidden: Sequence[int] = (64, 32),
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Task:
    """A task on the digits as rows of 64 pixels, with a network of linear layers.

    Args:
        hidden: the width of each hidden layer; the layers are named "0", "2", ….
        batch_size: rows per batch.
        seed: seed of the stratified split into 60 % train, 20 % validation and 20 % test.
        device: the device for models and data.

    Raises:
        TypeError: `hidden` is not a list of whole numbers.
        ValueError: a width or the batch size is less than 1.
    """
    return Task.from_arrays(
        model=mlp_factory(64, hidden, 10),
        **_splits((64,), seed),
        batch_size=batch_size,
        name="digits-mlp",
        device=device,
    )


def digits_cnn(
    *,
    channels: Sequence[int] = (16, 32),
    hidden: int | None = 64,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Task:
    """A task on the digits as images of 1×8×8 pixels, with a small convolutional network.

    Args:
        channels: the width of each block of two convolutions.
        hidden: the width of the linear layer after the blocks; None leaves it out.
        batch_size: rows per batch.
        seed: seed of the stratified split into 60 % train, 20 % validation and 20 % test.
        device: the device for models and data.

    Raises:
        TypeError: a width is not a whole number.
        ValueError: a width or the batch size is less than 1, or there are more than three blocks.
    """
    return Task.from_arrays(
        model=vgg_factory(8, channels, hidden, 10),
        **_splits((1, 8, 8), seed),
        batch_size=batch_size,
        name="digits-cnn",
        device=device,
    )


def _splits(shape: tuple[int, ...], seed: int) -> ArraySplits:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    rows = split_rows(
        len(labels), validation=_HELD_FRACTION, test=_HELD_FRACTION, seed=seed, labels=labels
    )
    images = standardised_images({split: pixels[index] for split, index in rows.items()})
    x = {split: values.reshape(-1, *shape) for split, values in images.items()}
    return array_splits(x, {split: labels[index] for split, index in rows.items()})
