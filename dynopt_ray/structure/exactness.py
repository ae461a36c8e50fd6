"""Proof by running that growth leaves the output as it was.

Tracing knows which operations depend on the number of units. It cannot see everything: a forward
pass may compute with sizes in ways of its own, and copies of units are exact only where what reads
them is linear in its weights. So the network runs once with the old and once with the new weights,
on the inputs that it was traced with, before anything is assigned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure.attributes import Attribute, attributes_changed
from dynopt_ray.structure.forward import Inputs, call, moved, undisturbed
from dynopt_ray.structure.layout import Change
from dynopt_ray.structure.tracing import tensors_in

_ROUNDINGS = 4.0
_SMALL = 1e-3


def check_exact(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    grown: Mapping[str, Tensor],
    attributes: Sequence[Attribute],
    changes: Sequence[Change],
) -> None:
    """Refuse growth that shows in the output, by more than 4 √ε of its largest value.

    ε is the rounding of the coarsest numbers involved: 0.14 % for float32. A network without
    values (on the meta device), or one that does not run where its first parameter lies, is taken
    at tracing's word.

    Args:
        model: the network; not changed.
        inputs: what it is called with.
        tensors: its parameters and buffers.
        grown: new values of those that grow.
        attributes: its integer attributes that follow the widths.
        changes: how its groups grow.

    Raises:
        EditError: the output differs.
    """
    if not tensors or any(tensor.is_meta for tensor in tensors.values()):
        return
    inputs = moved(inputs, next(iter(tensors.values())).device)
    try:
        before = _outputs(model, inputs, tensors)
    except Exception:  # parts of it are elsewhere, say: whatever a forward pass raises
        return
    added = {change.group.name: change.added for change in changes}
    with attributes_changed(model, attributes, added):
        after = _outputs(model, inputs, {**tensors, **grown})
    coarsest = max(torch.finfo(t.dtype).eps for t in [*tensors.values(), *before] if _real(t))
    for old, new in zip(before, after, strict=True):
        if not (_real(old) and old.numel() and bool(old.isfinite().all())):
            continue
        scale = max(float(old.abs().max()), _SMALL)
        change = float((new - old).abs().max()) / scale
        if not change <= _ROUNDINGS * coarsest**0.5:
            names = ", ".join(repr(name) for name in added)
            raise EditError(
                f"growing {names} this way would change the output by {change:.2g} of its largest "
                "value: the forward pass computes with the number of units, treats them by where "
                "they stand, or (init='split') is not linear in the weights that read them. Try "
                "init='fresh', or pass exact=False to accept that"
            )


def _outputs(model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    with undisturbed(model, training=False):
        output: Any = call(model, inputs, tensors)
    return list(tensors_in(output))


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
