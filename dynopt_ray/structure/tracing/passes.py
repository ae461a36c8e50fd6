"""Trace one network at one set of shapes, and group its units."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import TraceError
from dynopt_ray.structure.tracing import rules as rules  # fills registry.RULES
from dynopt_ray.structure.tracing.forward import (
    Inputs,
    call,
    modules_known,
    on_device,
    placeholder_tensors,
    undisturbed,
)
from dynopt_ray.structure.tracing.tracer import Heads, Trace
from dynopt_ray.structure.units import Grouping, Key, Link, Place, Record, group_units


@dataclass(frozen=True, eq=False)
class Passes:
    """A network traced at one set of shapes.

    Attributes:
        record: everything the trace found out, such as roles, consumers and work.
        grouping: the width groups and fixed sizes that follow from the record.
        output_sizes: the sizes of all output tensors.
        device: the device on which it was traced: "meta", or the network's own.
    """

    record: Record
    grouping: Grouping
    output_sizes: tuple[torch.Size, ...]
    device: torch.device


def trace_passes(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    *,
    heads: Heads,
    device: torch.device,
    pinned: Mapping[Key, str] = MappingProxyType({}),
    with_costs: bool = True,
    counted: Mapping[Place, Sequence[Key]] = MappingProxyType({}),
) -> Passes:
    """Trace the network in evaluation mode, and in training mode too if parameters stay unused.

    Args:
        model: the network; it is not changed.
        inputs: the inputs of the network, on `device`.
        tensors: its parameters and buffers at the sizes to trace, on `device`.
        heads: what a unit of attention is; see `Trace`.
        device: the device to run on; "meta" computes shapes only.
        pinned: dimensions of parameters or buffers that must keep their size, with the reasons.
        with_costs: whether to record the costs of operations and the blocks.
        counted: attribute -> the parameter dimensions whose units it counts, though the pass does
            not use it.

    Raises:
        Exception: any error that the network's own forward raises.
    """
    record = Record({id(tensor): name for name, tensor in tensors.items()}, with_costs)
    sizes = _run(model, inputs, tensors, record, heads, training=False)
    if unused(record, tensors):
        # Auxiliary classifiers run in training mode only. Costs and consumers describe evaluation
        # mode, so those of the second pass are discarded.
        work, consumers = [*record.work], {n: [*uses] for n, uses in record.consumers.items()}
        sizes += _run(model, inputs, tensors, record, heads, training=True)
        record.work, record.consumers = work, defaultdict(list, consumers)
    for key, reason in pinned.items():
        record.pinned.append((record.parameter_ids[key], reason))
    for place, keys in counted.items():
        record.links += [Link(place, record.parameter_ids[key]) for key in keys]
    for ids, cause in record.normed:
        if any(record.roles.get(key) != "in" for key in record.owners(ids)):
            record.mixed.append((ids, cause))
    for ids, cause in record.divisors:
        if any(record.roles.get(key) == "in" for key in record.owners(ids)):
            record.mixed.append((ids, cause))
    return Passes(record, group_units(record), sizes, device)


def unused(record: Record, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of parameters and buffers with a width that the pass did not reach."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.ndim and tensor.is_floating_point() and name not in record.first_use
    ]


def trace_at_own_sizes(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    heads: Heads,
    pinned: Mapping[Key, str],
    counted: Mapping[Place, Sequence[Key]] = MappingProxyType({}),
) -> Passes:
    """Trace on the meta device, or on the network's own device if it needs values.

    Raises:
        TraceError: the network does not run on these inputs.
    """
    try:
        return _trace_on(torch.device("meta"), model, inputs, tensors, heads, pinned, counted)
    except Exception as meta_error:
        device = next((t.device for t in tensors.values()), torch.device("cpu"))
        if device.type == "meta":
            raise _untraceable(model, meta_error) from meta_error
        try:
            return _trace_on(device, model, inputs, tensors, heads, pinned, counted)
        except Exception as error:
            raise _untraceable(model, error) from error


def _trace_on(
    device: torch.device,
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    heads: Heads,
    pinned: Mapping[Key, str],
    counted: Mapping[Place, Sequence[Key]],
) -> Passes:
    if device.type == "meta":
        traced = placeholder_tensors(tensors, {}, device)
    else:
        # A pass in training mode writes to buffers, so they must not be the network's own.
        traced = {n: t if isinstance(t, nn.Parameter) else t.clone() for n, t in tensors.items()}
    return trace_passes(
        model,
        on_device(inputs, device),
        traced,
        heads=heads,
        device=device,
        pinned=pinned,
        counted=counted,
    )


def _untraceable(model: nn.Module, error: Exception) -> TraceError:
    return TraceError(
        f"{type(model).__name__} cannot run on these example inputs: "
        f"{type(error).__name__}: {error}. Pass the inputs that the network gets in training: a "
        "tensor, a tuple of arguments or a dict of keyword arguments."
    )


def _run(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    record: Record,
    heads: Heads,
    *,
    training: bool,
) -> tuple[torch.Size, ...]:
    """Run one pass under a trace, pin its outputs and return their sizes."""
    with undisturbed(model, training) as kept:
        buffers = [name for name, _ in model.named_buffers()]
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        trace = Trace(tensors, record, heads, buffers, frozen)
        with modules_known(model, trace), trace:
            output: Any = call(model, inputs, tensors)
        outputs = trace.outputs(output)
    record.caches += kept
    if not training:
        record.blocks = trace.blocks
    return tuple(tensor.shape for tensor in outputs)
