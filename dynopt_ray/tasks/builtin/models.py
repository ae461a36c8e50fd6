"""The networks of the built-in tasks: plain torch modules, so that every width can be changed."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

# Beyond these a network takes more than the memory of any machine, or the stack of the tracer.
LARGEST_WIDTH, MOST_LAYERS = 2**20, 200


def mlp(num_inputs: int, hidden: Sequence[int], num_outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them; the hidden layers are named "0", "2", "4", ….

    Args:
        num_inputs: columns of the input (rows, num_inputs).
        hidden: the width of each hidden layer.
        num_outputs: columns of the output.
    """
    widths = [num_inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))


def vgg(
    image_size: int, channels: Sequence[int], hidden: int | None, num_outputs: int
) -> nn.Sequential:
    """A small VGG for square images of one channel.

    For each entry of `channels` there are two 3×3 convolutions of that width, each with batch
    normalisation and ReLU, and a pooling layer that halves the image. One hidden linear layer
    follows.

    Args:
        image_size: pixels per side; halved once per entry of `channels`.
        channels: the width of each block.
        hidden: the width of the linear layer; None leaves it out.
        num_outputs: columns of the output.
    """
    layers: list[nn.Module] = []
    before = 1
    for width in channels:
        for _ in range(2):
            # No bias: batch normalisation subtracts the mean, and any bias with it.
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU()]
            before = width
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Flatten()]
    before *= (image_size >> len(channels)) ** 2
    if hidden is not None:
        layers += [nn.Linear(before, hidden), nn.ReLU()]
        before = hidden
    return nn.Sequential(*layers, nn.Linear(before, num_outputs))


def mlp_factory(
    num_inputs: int, hidden: Sequence[int], num_outputs: int
) -> Callable[[], nn.Sequential]:
    """Return a factory of `mlp` that can be pickled; the arguments are checked at once.

    Raises:
        TypeError: `hidden` is not a list of whole numbers.
        ValueError: `hidden` is empty or too long, or holds a width that is out of range.
    """
    return partial(mlp, num_inputs, _widths("hidden", hidden), num_outputs)


def vgg_factory(
    image_size: int, channels: Sequence[int], hidden: int | None, num_outputs: int
) -> Callable[[], nn.Sequential]:
    """Return a factory of `vgg` that can be pickled; the arguments are checked at once.

    Raises:
        TypeError: a width is not a whole number.
        ValueError: a width is out of range, or the image cannot be halved once per block.
    """
    widths = _widths("channels", channels)
    if image_size >> len(widths) < 1:
        raise ValueError(
            f"channels has {len(widths)} blocks, each of which halves the image, but the image "
            f"has only {image_size} pixels per side; give at most {image_size.bit_length() - 1}"
        )
    if hidden is not None:
        _widths("hidden", [hidden])
    return partial(vgg, image_size, widths, hidden, num_outputs)


def _widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise TypeError(f"{name} must be a list of widths such as [64, 32], not {widths!r}")
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int):
            raise TypeError(f"{name} must hold whole numbers, not {width!r}")
        if width < 1:
            raise ValueError(f"{name} holds {width}; every width must be at least 1")
        if width > LARGEST_WIDTH:
            raise ValueError(f"{name} holds {width}; the largest width is {LARGEST_WIDTH:,}")
    if not 1 <= len(widths) <= MOST_LAYERS:
        raise ValueError(f"{name} has {len(widths)} widths; give 1 to {MOST_LAYERS}")
    return tuple(widths)
