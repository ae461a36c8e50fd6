"""Proof by running that an edit leaves the output as it was.

Tracing knows which operations depend on the number of units. It cannot see everything: a forward
pass may compute with sizes in ways of its own, and copies of units are exact only where what reads
them is linear in its weights. So the network runs once with the old and once with the new weights,
on the inputs that it was traced with, before anything is assigned.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dynopt_ray.errors import EditError
from dynopt_ray.structure.tracing import (
    Inputs,
    buffers_kept,
    call,
    given_tensors,
    moved,
    named_tensors,
    tensors_in,
    undisturbed,
)
from dynopt_ray.structure.units import Attribute, Change, attributes_changed

_ROUNDINGS = 4.0
_SMALL = 1e-3
_OTHER_FACTORS = (-3.0, -100.0)


def check_growth(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    grown: Mapping[str, Tensor],
    attributes: Sequence[Attribute],
    changes: Sequence[Change],
) -> None:
    """Refuse growth that shows in the output.

    A network without values (on the meta device), or one that does not run where its first
    parameter lies, is taken at tracing's word.

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
    before = outputs_of(model, inputs, tensors)
    if before is None:
        return
    added = {change.group.name: change.added for change in changes}
    with attributes_changed(model, attributes, added):
        after = _outputs(model, inputs, {**tensors, **grown})
    if change := output_change(before, after, tensors):
        raise EditError(
            f"growing {', '.join(map(repr, added))} this way would change the output by "
            f"{change:.2g} of its largest value: the forward pass computes with the number of "
            "units, treats them by where they stand, or (init='split') is not linear in the "
            "weights that read them. Try init='fresh', or pass exact=False to accept that"
        )


def other_inputs(inputs: Inputs) -> list[Inputs]:
    """Inputs of the same shapes and other signs and sizes, where they are floating-point."""
    if not any(t.is_floating_point() for t in tensors_in(inputs)):
        return []
    return [
        tree_map_only(Tensor, lambda t, f=f: f * t if t.is_floating_point() else t, inputs)
        for f in _OTHER_FACTORS
    ]


def outputs_of(
    model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor] | None = None
) -> list[Tensor] | None:
    """The tensors that a network gives in evaluation mode, or None where it cannot run."""
    tensors = tensors or named_tensors(model)
    if not tensors or any(tensor.is_meta for tensor in tensors.values()):
        return None
    try:
        return _outputs(model, inputs, tensors)
    except Exception:  # parts of it are elsewhere, say: whatever a forward pass raises
        return None


def output_change(
    before: Sequence[Tensor], after: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> float:
    """The largest change relative to the largest value of its tensor; 0 if it is rounding.

    That is up to 4 √ε, with ε that of the coarsest numbers involved: 0.14 % for float32.
    """
    numbers = [t for t in [*tensors.values(), *before] if _is_real(t)]
    allowed = _ROUNDINGS * max(torch.finfo(t.dtype).eps for t in numbers) ** 0.5
    largest = 0.0
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return float("inf")
        if _is_real(old) and old.numel() and bool(old.isfinite().all()):
            change = float((new - old).abs().max()) / max(float(old.abs().max()), _SMALL)
            largest = max(largest, change if change == change else float("inf"))
    return largest if largest > allowed else 0.0


def _outputs(model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    inputs = moved(inputs, next(iter(tensors.values())).device)
    with undisturbed(model, training=False), buffers_kept(model, tensors):
        return list(given_tensors(call(model, inputs, tensors)))


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
