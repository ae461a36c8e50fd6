"""Batches: the order in which they come, and how a model is called with one and checked."""

from collections.abc import Iterator
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dynopt_ray.errors import DataError
from dynopt_ray.structure import Inputs
from dynopt_ray.transfers import to_device

OutputKind = Literal["classes", "logits", "numbers"]
"""What a model outputs: a score per class along dimension 1, one logit per label, or numbers."""

Nested = TypeVar("Nested")
"""Tensors, or tuples and dicts that contain tensors among other things."""


def batch_indices(
    num_samples: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | None = None,
) -> Iterator[Tensor]:
    """Return an endless stream of batches of row numbers.

    The stream concatenates permutations of all rows and cuts them into batches of equal size, so
    a batch may hold the end of one permutation and the start of the next. Batches of equal size
    can be stacked and need to be compiled only once. There is also never a last batch of a single
    row, on which batch normalisation fails. Dropping the last rows instead would skip them.

    Args:
        num_samples: the number of rows.
        batch_size: rows per batch; reduced to `num_samples` if it is larger.
        generator: a CPU generator that draws the permutations; the same state gives the same
            stream. Without it the rows come in order, repeatedly.
        device: where the row numbers are needed. Each permutation is copied there once. Default:
            the CPU.

    Returns:
        An endless iterator of LongTensors (min(batch_size, num_samples),) on the device.

    Raises:
        ValueError: `num_samples` or `batch_size` is less than 1.

    Example:
        >>> stream = batch_indices(3, 2)
        >>> [next(stream).tolist() for _ in range(3)]
        [[0, 1], [2, 0], [1, 2]]
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    place = torch.device("cpu") if device is None else device
    return _batch_indices(num_samples, min(batch_size, num_samples), generator, place)


def _batch_indices(
    num_samples: int, batch_size: int, generator: torch.Generator | None, device: torch.device
) -> Iterator[Tensor]:
    rest = torch.empty(0, dtype=torch.int64, device=device)
    while True:
        rest = torch.cat([rest, to_device(epoch_order(num_samples, generator), device)])
        while len(rest) >= batch_size:
            yield rest[:batch_size]
            rest = rest[batch_size:]


def epoch_order(num_samples: int, generator: torch.Generator | None) -> Tensor:
    """All row numbers once: shuffled with a generator, in order without one."""
    if generator is None:
        return torch.arange(num_samples, device="cpu")
    return torch.randperm(num_samples, generator=generator, device="cpu")


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model: a tuple is passed as positional arguments, a dict as keyword arguments.

    A RuntimeError of the model gets a note that describes the inputs.
    """
    try:
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    except RuntimeError as error:
        error.add_note(f"The model was called with {describe_batch(inputs)}.{_hint(model, inputs)}")
        raise


def check_output(output: object, targets: Tensor) -> Tensor:
    """Return the output after checking that it holds one prediction per target.

    Raises:
        DataError: the output is not a tensor, or it has the wrong shape. For labels the shape
            must be (rows, classes, …), for numbers that of the targets.
    """
    if not isinstance(output, Tensor):
        raise DataError(
            f"the model returns {type(output).__name__}; a task needs one tensor: wrap the model "
            f"in a module whose forward returns it"
        )
    shape, wanted = tuple(output.shape), tuple(targets.shape)
    if targets.is_floating_point():
        if shape != wanted:
            raise DataError(
                f"the model returns shape {shape} for targets of shape {wanted}; numbers need "
                f"equal shapes, or the loss would compare every row with every other. Reshape "
                f"y, e.g. y[:, None], or the model's output"
            )
    elif not is_classification(output, targets):
        raise DataError(
            f"the model returns shape {shape} for labels of shape {wanted}; for labels it must "
            f"return (rows, classes), followed by the labels' other dimensions"
        )
    return output


def is_classification(output: Tensor, targets: Tensor) -> bool:
    """Whether the output holds one score per class for each of the targets."""
    return (
        not targets.is_floating_point()
        and output.dim() >= 2
        and (output.shape[0], *output.shape[2:]) == tuple(targets.shape)
    )


def binary_logits(output: Tensor, targets: Tensor) -> Tensor | None:
    """One logit per label, in the targets' shape, as binary losses need it; None if there is none.

    A single column of outputs counts as logits too.
    """
    if targets.is_floating_point():
        return None
    if output.shape == targets.shape:
        return output
    one_column = is_classification(output, targets) and output.shape[1] == 1
    return output[:, 0] if one_column else None


def is_binary(targets: Tensor) -> bool:
    """Whether all targets are 0 or 1."""
    return bool(((targets == 0) | (targets == 1)).all())


def predicted_classes(output: Tensor, targets: Tensor) -> Tensor | None:
    """The predicted class of each target, or None if the output holds no scores of classes.

    A single logit above 0 means class 1, any other class 0.
    """
    logits = binary_logits(output, targets)
    if logits is not None:
        return (logits > 0).long()
    return output.argmax(dim=1) if is_classification(output, targets) else None


def take_rows(inputs: Nested, num_rows: int) -> Nested:
    """The first rows of all tensors in the inputs; everything else stays unchanged."""
    return cast(Nested, tree_map_only(Tensor, lambda tensor: tensor[:num_rows], inputs))


def describe_batch(inputs: Inputs) -> str:
    """Describe the shapes, dtypes and devices of inputs, for messages."""
    if isinstance(inputs, dict):
        return ", ".join(f"{name}={describe_batch(value)}" for name, value in inputs.items())
    if isinstance(inputs, tuple):
        return ", ".join(describe_batch(value) for value in inputs)
    return f"a {inputs.dtype} tensor of shape {tuple(inputs.shape)} on {inputs.device}"


def _hint(model: nn.Module, inputs: Inputs) -> str:
    if not isinstance(inputs, Tensor):
        return ""
    if inputs.dtype == torch.int64:
        could_be_bytes = inputs.ndim > 2 and bool((inputs == inputs.to(torch.uint8)).all())
        scaled = "; if x are images of bytes, x.astype('float32') / 255" if could_be_bytes else ""
        return (
            " Whole numbers suit embeddings; other layers need floats: x.astype('float32')"
            f"{scaled}."
        )
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes and inputs.dtype not in dtypes:
        return (
            f" Its parameters are {', '.join(map(str, dtypes))}, and tasks give torch's default "
            "dtype: convert the model, or call torch.set_default_dtype before making the task."
        )
    return ""
