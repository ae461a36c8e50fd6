"""Proof that an edit does not change the output, by running the network.

Tracing finds the operations that depend on the number of units, but it cannot see everything. A
forward pass may compute with sizes in its own way, and copies of units are exact only if the
operations that read them are linear in their weights. So the network runs once with the old weights
and once with the new ones, on the inputs it was traced with, before anything is assigned.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import EditError
from dynopt_ray.structure.tracing import (
    Inputs,
    buffers_kept,
    call,
    named_tensors,
    on_device,
    output_tensors,
    tensors_in,
    undisturbed,
)
from dynopt_ray.structure.units import Attribute, Change, attributes_changed
from dynopt_ray.transfers import read_numbers

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
    """Refuse growth that changes the network's output.

    A network without values (on the meta device), or one that does not run on the device of its
    first parameter, is not checked: the result of tracing is trusted.

    Args:
        model: the network; not changed.
        inputs: the inputs of a forward pass.
        tensors: its parameters and buffers.
        grown: the new values of the tensors that grow.
        attributes: its integer attributes that follow the widths.
        changes: how its groups grow.

    Raises:
        EditError: the growth changes the output.
    """
    before = outputs_of(model, inputs, tensors)
    if before is None:
        return
    added = {change.group.name: change.added for change in changes}
    names = ", ".join(map(repr, added))
    try:
        with attributes_changed(model, attributes, added):
            after = _outputs(model, inputs, {**tensors, **grown})
    except OF_THE_MACHINE:
        raise
    except Exception as error:
        raise EditError(
            f"growing {names} this way would stop the forward pass, which raises "
            f"{type(error).__name__}: {error}. Grow by fewer units"
        ) from error
    if change := output_change(before, after, tensors):
        raise EditError(
            f"growing {names} this way {_how_much(change)}: {_why(changes)}, or pass exact=False "
            "to accept the change"
        )


def _how_much(change: float) -> str:
    if change == float("inf"):
        return "would make the output NaN or infinite, or change its shape"
    return f"would change the output by {change:.2g} of its largest value"


def _why(changes: Sequence[Change]) -> str:
    """Return what may cause a change that tracing did not find, and what to try."""
    computes = (
        "the forward pass computes with the number of units, with values that it reads from them "
        "outside torch, or treats them by their position"
    )
    if all(bool((change.source < 0).all()) for change in changes):
        return f"{computes}. Fix this width (trace(…, fixed=…))"
    return (
        f"{computes}, or it is not linear in the weights that read the copied units. Try "
        "init='fresh'"
    )


def other_inputs(inputs: Inputs) -> list[Inputs]:
    """Return variants with other signs and magnitudes; none if nothing is floating-point."""
    if not any(t.is_floating_point() for t in tensors_in(inputs)):
        return []
    return [
        tree_map_only(Tensor, lambda t, f=f: f * t if t.is_floating_point() else t, inputs)
        for f in _OTHER_FACTORS
    ]


def outputs_of(
    model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor] | None = None
) -> list[Tensor] | None:
    """Return a network's output tensors in evaluation mode, or None if it cannot run."""
    tensors = tensors or named_tensors(model)
    if not tensors or any(tensor.is_meta for tensor in tensors.values()):
        return None
    try:
        return _outputs(model, inputs, tensors)
    except OF_THE_MACHINE:
        raise
    except Exception:  # a forward pass may raise anything, e.g. if its parts are on other devices
        return None


def output_change(
    before: Sequence[Tensor], after: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> float:
    """Return the largest change, relative to the largest value of its tensor; 0 if it is rounding.

    Changes up to 4 √ε count as rounding, with the ε of the coarsest dtype: 0.14 % for float32.
    """
    numbers = [t for t in [*tensors.values(), *before] if _is_real(t)]
    allowed = _ROUNDINGS * max(torch.finfo(t.dtype).eps for t in numbers) ** 0.5
    unread: list[Tensor] = []
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return float("inf")
        if _is_real(old) and old.numel():
            unread += [old.isfinite().all(), (new - old).abs().max(), old.abs().max()]
    largest = 0.0
    figures = read_numbers(unread)  # at once, so that the host waits for a GPU once
    for is_finite, moved, size in zip(figures[::3], figures[1::3], figures[2::3], strict=True):
        if is_finite:
            change = moved / max(size, _SMALL)
            largest = max(largest, change if change == change else float("inf"))
    return largest if largest > allowed else 0.0


def _outputs(model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    inputs = on_device(inputs, next(iter(tensors.values())).device)
    with undisturbed(model, training=False), buffers_kept(model, tensors):
        return [t.detach() for t in output_tensors(call(model, inputs, tensors))]


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
