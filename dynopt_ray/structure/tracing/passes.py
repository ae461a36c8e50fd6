"""Trace one network at one set of shapes, and group its units."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import TraceError
from dynopt_ray.structure.preserve import RandomState, note_written
from dynopt_ray.structure.tracing import rules as rules  # fills registry.RULES
from dynopt_ray.structure.tracing.forward import (
    Inputs,
    call,
    modules_known,
    on_device,
    placeholder_tensors,
    undisturbed,
)
from dynopt_ray.structure.tracing.idle_siblings import (
    IdleSiblings,
    Siblings,
    partly_idle,
    read_by_siblings,
)
from dynopt_ray.structure.tracing.nested_tensors import output_tensors, tensors_in
from dynopt_ray.structure.tracing.tracer import Heads, Trace
from dynopt_ray.structure.tracing.values import ValueReads, place_of_error
from dynopt_ray.structure.units import (
    IS_OUTPUT,
    Grouping,
    Key,
    Link,
    Place,
    Record,
    group_units,
    producer_name,
)


@dataclass(frozen=True, eq=False)
class Passes:
    """A network traced at one set of shapes.

    Attributes:
        record: everything the trace found out, such as roles, consumers and work.
        grouping: the width groups and fixed sizes that follow from the record.
        output_sizes: the sizes of all output tensors.
        device: the device on which it was traced: "meta", or the network's own.
        reads: the values that it read, and by which it may have decided what to run.
        families: the modules of lists of which it reached some, but not all.
        pinned: (parameter, dimension) -> why it must keep its size, for reasons that are not in
            the operations.
    """

    record: Record
    grouping: Grouping
    output_sizes: tuple[torch.Size, ...]
    device: torch.device
    reads: ValueReads
    families: Sequence[Siblings]
    pinned: Mapping[Key, str]


def trace_passes(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    *,
    heads: Heads,
    device: torch.device,
    pinned: Mapping[Key, str] = MappingProxyType({}),
    with_costs: bool = True,
    reads: ValueReads | None = None,
    families: Sequence[Siblings] = (),
    counted: Mapping[Place, Sequence[Key]] = MappingProxyType({}),
) -> Passes:
    """Trace the network in evaluation mode, and in training mode too if parameters stay unused.

    Args:
        model: the network; it is not changed.
        inputs: the inputs of the network, on `device`.
        tensors: its parameters and buffers at the sizes to trace, on `device`.
        heads: what a unit of attention is; see `Trace`.
        device: the device to run on; "meta" computes shapes only.
        pinned: (parameter or buffer, dimension) -> reason, for dimensions that must keep their
            size.
        with_costs: whether to record the costs of operations and the blocks.
        reads: the values that an earlier trace read, to decide the same; None for the first trace.
        families: modules of one list; those that are not reached follow those that are.
        counted: attribute -> the parameter dimensions whose units it counts, though the pass does
            not use it.

    Raises:
        OtherWayError: the network ran other operations than in the earlier trace.
        Exception: any error that the network's own forward raises.
    """
    record = Record({id(tensor): name for name, tensor in tensors.items()}, with_costs)
    reads = ValueReads() if reads is None else reads.repeated()

    versions = {name: tensors[name]._version for name, _ in model.named_parameters()}

    def one_pass(*, training: bool) -> tuple[torch.Size, ...]:
        buffers = [name for name, _ in model.named_buffers()]
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        trace = Trace(tensors, record, heads, buffers, frozen, reads)
        return _run(model, inputs, tensors, trace, families, training=training)

    sizes = one_pass(training=False)
    note_written(model, {n for n, before in versions.items() if tensors[n]._version != before})
    if unused(record, tensors):
        # Auxiliary classifiers run in training mode only. Costs and consumers describe evaluation
        # mode, so those of the second pass are discarded.
        work, consumers = [*record.work], {n: [*uses] for n, uses in record.consumers.items()}
        branches = dict(reads.branches)  # layers dropped at random lead to nothing new
        sizes += one_pass(training=True)
        record.work, record.consumers = work, defaultdict(list, consumers)
        reads.branches = branches
    pinned = {**pinned, **read_by_siblings(model, record.first_use)}
    if reads.branches or families:
        missed = unknown(model, record)
        if not reads.branches:  # then only the modules of lists of which others ran
            beside = tuple(f"{name}." for family in families for name, _ in family.members)
            missed = [name for name in missed if name.startswith(beside)]
        pinned |= _possibly_read(record, {name: tensors[name] for name in missed})
    for key, reason in pinned.items():
        record.pinned.append((record.parameter_ids[key], reason))
    for place, keys in counted.items():
        record.links += [Link(place, record.parameter_ids[key]) for key in keys]
    _note_mixed(record)
    return Passes(record, group_units(record), sizes, device, reads, families, pinned)


def _note_mixed(record: Record) -> None:
    """Note which norms and divisors depend on the number of units, now that all roles are known."""
    for ids, cause in record.normed:
        if any(record.roles.get(key) != "in" for key in record.owners(ids)):
            record.mixed.append((ids, cause))
    for ids, cause in record.divisors:
        if any(record.roles.get(key) == "in" for key in record.owners(ids)):
            record.mixed.append((ids, cause))


def unused(record: Record, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of parameters and buffers with a width that the pass did not reach."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.ndim and tensor.is_floating_point() and name not in record.first_use
    ]


def unknown(model: nn.Module, record: Record) -> list[str]:
    """Return the names of parameters that the pass did not reach and that follow no sibling."""
    return [
        name
        for name, _ in model.named_parameters()
        if name not in record.first_use
        and not any(name.startswith(f"{module}.") for module in record.followed)
    ]


def _possibly_read(record: Record, readers: Mapping[str, Tensor]) -> dict[Key, str]:
    """Return the dimensions that other inputs may lead to these parameters, which were not reached.

    What the parameters would read is not known, but it has the size of one of their dimensions.
    """
    sizes = {size: name for name, tensor in readers.items() for size in tensor.shape if size > 1}
    return {
        (name, dim): f"{producer_name(sizes[ids.size])}, which this example did not reach, "
        "may read it"
        for (name, dim), ids in record.parameter_ids.items()
        if ids.size in sizes and name in record.first_use and (name, dim) not in record.hidden
    }


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
    except OF_THE_MACHINE:
        raise
    except Exception as meta_error:
        device = next((t.device for t in tensors.values()), torch.device("cpu"))
        if device.type == "meta":
            raise _untraceable(model, inputs, meta_error) from meta_error
        try:
            return _trace_on(device, model, inputs, tensors, heads, pinned, counted)
        except OF_THE_MACHINE:
            raise
        except Exception as error:
            raise _untraceable(model, inputs, error) from error


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
        # A pass may write to buffers, and to parameters, so they must not be the network's own.
        traced = placeholder_tensors(tensors, {}, device)

    def passes_with(families: Sequence[Siblings]) -> Passes:
        return trace_passes(
            model,
            on_device(inputs, device),
            traced,
            heads=heads,
            device=device,
            pinned=pinned,
            families=families,
            counted=counted,
        )

    passes = passes_with(())
    families = partly_idle(model, passes.record.first_use) if unused(passes.record, traced) else ()
    return passes_with(families) if families else passes


def _untraceable(model: nn.Module, inputs: Inputs, error: Exception) -> TraceError:
    hint = ""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    whole = {str(leaf.dtype) for leaf in leaves if not leaf.is_floating_point()}
    if whole and "type" in str(error):
        hint = (
            f" They hold {', '.join(sorted(whole))}; layers other than embeddings need floats: "
            "x.float(), or x.float() / 255 for images of bytes."
        )
    if isinstance(error, RecursionError):
        return TraceError(
            f"{type(model).__name__} is nested too deeply to be traced: a trace needs a few more "
            "calls on Python's stack than a pass. Raise the limit with sys.setrecursionlimit"
        )
    place = place_of_error(error)
    return TraceError(
        f"{type(model).__name__} cannot run on these example inputs: "
        f"{type(error).__name__}: {error}{f' (at {place})' if place else ''}. Pass the inputs that "
        "the network gets in training: a tensor, a tuple of arguments or a dict of keyword "
        "arguments." + hint
    )


def _run(
    model: nn.Module,
    inputs: Inputs,
    tensors: Mapping[str, Tensor],
    trace: Trace,
    families: Sequence[Siblings],
    *,
    training: bool,
) -> tuple[torch.Size, ...]:
    """Run one pass under a trace, pin its outputs and return their sizes."""
    record = trace.record
    with undisturbed(model, training) as kept:
        draws = RandomState(())
        with modules_known(model, trace), IdleSiblings(families) as siblings, trace:
            output: Any = call(model, inputs, tensors)
            followed = siblings.follow(trace, tensors)
        if draws.drawn_outside_torch():
            trace.values.branches["random numbers of Python or NumPy"] = None
        outputs = _pinned_outputs(trace, output)
        if trace.values.seen and record.with_costs:
            trace.flow.use([*outputs, *_tensors_kept(model)])
            trace.flow.drop_unused(record)
    record.caches.update(kept)
    record.followed.update(dict.fromkeys(followed))
    if not training:
        record.blocks = trace.blocks
    return tuple(tensor.shape for tensor in outputs)


def _pinned_outputs(trace: Trace, output: Any) -> list[Tensor]:
    """Pin the units of the network's output and return its tensors."""
    tensors = output_tensors(output)
    if not tensors:
        raise TraceError(
            f"it returns a {type(output).__name__}, in which no tensor is found; let it return "
            "a tensor, or a tuple, list, dict or object that holds tensors"
        )
    trace.pin_what_is_read(tensors)
    for tensor in tensors:
        trace.pin(trace.labels(tensor), IS_OUTPUT)
    return tensors


def _tensors_kept(model: nn.Module) -> Iterable[Tensor]:
    """Yield the tensors that modules keep after a pass: buffers, and what they keep to return."""
    for module in model.modules():
        for value in vars(module).values():
            yield from tensors_in(value)
