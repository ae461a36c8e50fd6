"""Gradients of the loss over data, computed without changing the network."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map_only

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import DivergedError, MissingGradientError
from dynopt_ray.structure import Inputs, buffers_kept, call, named_tensors, undisturbed

Batch = tuple[Inputs, Tensor]
"""The inputs and the targets of the same samples."""

_CHUNK_BYTES = 2**27
_MOST_SAMPLES = 64


def checked_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches that are not empty.

    Raises:
        MissingGradientError: no batch has samples.
        DivergedError: an input is not finite.
    """
    is_empty = True
    for number, (inputs, targets) in enumerate(batches):
        if not len(targets):
            continue
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()):
                raise DivergedError(
                    f"inputs in batch {number} of the data to score with are not finite"
                )
        is_empty = False
        yield inputs, targets
    if is_empty:
        raise MissingGradientError(
            "there are no samples to score with; pass at least one batch. Pass a list, not an "
            "iterator, if the batches are read more than once"
        )


def mean_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The gradient of the mean loss over all samples, independent of how they are batched.

    The network runs in evaluation mode, so that no sample's gradient depends on the other samples
    of its batch. Frozen parameters get gradients too. The `.grad` of parameters is not touched.
    Masked weights get the gradient that they would have without their mask.

    Args:
        model: the network; not changed.
        batches: (inputs, targets); each batch is weighted by its number of targets.
        loss: (output, targets) -> mean loss.
        tensors: values to use instead of the network's own parameters and buffers.

    Returns:
        Parameter name -> tensor of its shape.

    Raises:
        MissingGradientError: there are no samples, or the loss does not depend on some
            parameter.
        DivergedError: the loss or an input is not finite on some batch.
    """
    values = {**named_tensors(model), **(tensors or {})}
    names = [name for name, _ in model.named_parameters()]
    leaves = {name: values[name].detach().requires_grad_() for name in names}
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    num_samples = 0
    kept = buffers_kept(model, {**values, **leaves})
    with undisturbed(model, training=False), kept, torch.enable_grad():
        for number, (inputs, targets) in enumerate(checked_batches(batches)):
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
    return {name: total / num_samples for name, total in sums.items()}


def sample_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each single sample's loss, in evaluation mode, in chunks of samples.

    Yields:
        Parameter name -> tensor (samples, *shape of the parameter), detached. The number of
        samples in a chunk depends on the size of the network.

    Raises:
        MissingGradientError: as for `mean_gradients`.
        DivergedError: the loss is NaN or infinite on the first batch.
    """
    values = named_tensors(model)
    leaves = {name: p.detach() for name, p in model.named_parameters()}
    size = sum(leaf.nbytes for leaf in leaves.values())
    num_at_once = max(1, min(_MOST_SAMPLES, _CHUNK_BYTES // max(1, size)))

    def of_one(leaves: dict[str, Tensor], inputs: Inputs, target: Tensor) -> Tensor:
        one = tree_map_only(Tensor, lambda t: t[None], inputs)
        value: Tensor = loss(call(model, one, {**values, **leaves}), target[None])
        return value

    of_all: Any = vmap(grad(of_one), in_dims=(None, 0, 0))
    for number, batch in enumerate(checked_batches(batches)):
        if number == 0:  # raises the errors of an unusable network before the long work starts
            mean_gradients(model, [batch], loss)
        for inputs, targets in _parts(batch, num_at_once):
            kept = buffers_kept(model, {**values, **leaves})
            with undisturbed(model, training=False), kept, torch.enable_grad():
                try:
                    found = of_all(leaves, inputs, targets)
                except OF_THE_MACHINE:
                    raise
                except (RuntimeError, ValueError, TypeError, NotImplementedError):
                    # vmap cannot run this network, e.g. because its control flow uses values.
                    of_all = _one_by_one(of_one)
                    found = of_all(leaves, inputs, targets)
            yield {name: gradient.detach() for name, gradient in found.items()}


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """Split a batch into parts of at most `size` samples."""
    inputs, targets = batch
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        yield tree_map_only(Tensor, lambda t, rows=rows: t[rows], inputs), targets[rows]


def _one_by_one(of_one: Callable[..., Tensor]) -> Callable[..., dict[str, Tensor]]:
    """Return what `vmap` of `grad` would: the gradient of each sample, one after another.

    Plain automatic differentiation also runs networks that themselves call `autograd.grad`.
    """

    def of_all(leaves: dict[str, Tensor], inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        own = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        singles = []
        for i, target in enumerate(targets):
            value = of_one(own, tree_map_only(Tensor, lambda t, i=i: t[i], inputs), target)
            singles.append(torch.autograd.grad(value, [*own.values()]))
        return dict(zip(own, map(torch.stack, zip(*singles, strict=True)), strict=True))

    return of_all
