"""Gradients of the mean loss over data, without touching the network."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import DivergedError, MissingGradientError
from dynopt_ray.structure.forward import Inputs, call, named_tensors, undisturbed

Batch = tuple[Inputs, Tensor]
"""The inputs and the targets of the same samples."""


def mean_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The gradient of the mean loss over all samples, whatever batches they come in.

    The network runs in evaluation mode, so that no sample's gradient depends on the others of
    its batch. Frozen parameters have gradients here too; nobody's `.grad` is touched, and
    masked weights get the gradient they would have without their mask.

    Args:
        model: the network; not changed.
        batches: (inputs, targets); each batch counts as many samples as it has targets.
        loss: (output, targets) -> mean loss.
        tensors: values to use instead of the network's own parameters and buffers.

    Returns:
        Parameter name -> tensor of its shape.

    Raises:
        MissingGradientError: there are no batches, or the loss does not depend on some
            parameter.
        DivergedError: the loss is NaN or infinite on some batch.
    """
    values = {**named_tensors(model), **(tensors or {})}
    names = [name for name, _ in model.named_parameters()]
    leaves = {name: values[name].detach().requires_grad_() for name in names}
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    num_samples = 0
    with undisturbed(model, training=False), torch.enable_grad():
        for number, (inputs, targets) in enumerate(batches):
            output: Any = call(model, inputs, {**values, **leaves})
            value = loss(output, targets)
            if not math.isfinite(figure := value.item()):
                raise DivergedError(
                    f"the loss is {figure} on batch {number} of the data to score with: the "
                    "network has diverged or the batch holds extreme values"
                )
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is None:
                    raise MissingGradientError(
                        f"the loss does not depend on parameter {name!r} in evaluation mode, so "
                        "it has no gradient. Use a criterion without gradients ('magnitude')"
                    )
                sums[name].add_(gradient, alpha=len(targets))
            num_samples += len(targets)
    if num_samples == 0:
        raise MissingGradientError("there are no batches to take gradients from; pass at least one")
    return {name: total / num_samples for name, total in sums.items()}
