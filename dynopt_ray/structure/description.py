"""What tracing finds out about a network, as data: its width groups and all that follows them.

A network is traced at its own sizes, which gives candidate groups. Each candidate then has to be
proven: the network must run at another width of it. What passes is described as a group, and what
fails is described as fixed, with the reason.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynopt_ray.errors import TraceError, UnknownNameError
from dynopt_ray.structure.costs import CostModel
from dynopt_ray.structure.preserve import CollectorPaused, Surroundings
from dynopt_ray.structure.tracing import (
    Heads,
    Inputs,
    Verifier,
    named_tensors,
    trace_at_own_sizes,
    unused,
)
from dynopt_ray.structure.units import Attribute, Consumer, Record, WidthGroup, producer_name

_BY_CALLER = "the caller fixed it"
# By name, because importing classes that are rarely used takes long. The values say where the
# inner module is.
_WRAPPERS = {
    "DistributedDataParallel": " (.module)",
    "FullyShardedDataParallel": " before it is sharded",
    "FSDPModule": " before it is sharded",
    "DataParallel": " (.module)",
}


@dataclass(frozen=True, eq=False)
class Asked:
    """The arguments of `trace`; see there."""

    example_inputs: Inputs
    fixed: tuple[str, ...]
    heads: Heads


@dataclass(frozen=True, eq=False)
class Description:
    """What is known about a network at its present depth.

    Attributes:
        groups: what can be resized, in forward order.
        index: the name of a group, or of a module or parameter that produces it -> its place in
            `groups`. Edits change what a group holds, never its name or place.
        fixed: what cannot be resized: name -> reason.
        attributes: integer attributes of modules that follow a width.
        caches: (module, attribute) pairs in which modules keep tensors of an earlier pass.
        consumers: parameter name -> the operations that read units through it.
        blocks: the modules that `Remove` can take out; see `Graph`.
        cost_model: computes costs from widths.
        output_sizes: the sizes of all output tensors on the example inputs.
    """

    groups: tuple[WidthGroup, ...]
    index: Mapping[str, int]
    fixed: dict[str, str]
    attributes: tuple[Attribute, ...]
    caches: Mapping[tuple[nn.Module, str], None]
    consumers: Mapping[str, Sequence[Consumer]]
    blocks: dict[str, int | None]
    cost_model: CostModel
    output_sizes: tuple[torch.Size, ...]


def describe(model: nn.Module, asked: Asked) -> Description:
    """Trace a network and prove each of its widths; see `trace` for the errors and the warning."""
    if asked.heads not in get_args(Heads):
        raise UnknownNameError("unit of attention", asked.heads, get_args(Heads))
    _check_model(model)
    tensors = named_tensors(model)
    pinned = {_produced_by(tensors, name): _BY_CALLER for name in asked.fixed}
    surroundings = Surroundings(model)
    paused = CollectorPaused()
    with paused, paused, surroundings, surroundings:
        passes = trace_at_own_sizes(model, asked.example_inputs, tensors, asked.heads, pinned)
        _warn_of_other_ways(passes.record, tensors)
        verdict = Verifier(model, asked.example_inputs, tensors, passes, asked.heads).verdict()
    groups = tuple(verdict.groups)
    # The first group that a module produces wins, and a group's own name before all.
    index = {name: i for i, g in reversed([*enumerate(groups)]) for name in g.producers}
    index.update((group.name, i) for i, group in enumerate(groups))
    owners = {name for name, module in model.named_modules() if [*module.parameters()]}
    return Description(
        groups=groups,
        index=index,
        fixed={**passes.grouping.fixed, **verdict.fixed},
        attributes=tuple(verdict.attributes),
        caches=dict.fromkeys(passes.record.caches),
        consumers=passes.record.consumers,
        blocks={name: more for name, more in passes.record.blocks.items() if name in owners},
        cost_model=CostModel(tensors, passes.record, passes.grouping.only(verdict.groups)),
        output_sizes=passes.output_sizes,
    )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"{model!r} is not a torch module")
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "the network"
        if hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{what} is compiled for the sizes that it has. Trace and edit what it was "
                "compiled from (._orig_mod of torch.compile): what torch.compile made of it "
                "follows by itself. A layer is best compiled in place, by its method .compile()."
            )
        kinds = {base.__name__ for base in type(module).__mro__}
        if wrapper := next((kind for kind in _WRAPPERS if kind in kinds), None):
            raise TraceError(
                f"{what} is wrapped in {wrapper}, which keeps the old sizes. Trace and edit the "
                f"inner module{_WRAPPERS[wrapper]} and wrap it again after each edit."
            )
    if not any(True for _ in model.parameters()):
        raise TraceError(f"{type(model).__name__} has no parameters, so it has no widths")
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise TraceError(
            "the network has lazy layers without shapes. Run it once on real data before tracing."
        )


def _warn_of_other_ways(record: Record, tensors: Mapping[str, Tensor]) -> None:
    missed = unused(record, tensors)
    if record.by_value and missed:
        modules = ", ".join(dict.fromkeys(map(producer_name, missed)))
        warnings.warn(
            f"the forward pass decides by values, and these inputs did not lead it to {modules}. "
            "What that reads is not known: "
            "trace with inputs that reach it, or name in `fixed` the widths it reads",
            stacklevel=4,  # the caller of `trace`
        )


def _produced_by(tensors: Mapping[str, Tensor], name: str) -> str:
    """The parameter whose first dimension a name stands for."""
    for parameter in (name, f"{name}.weight", f"{name}.bias"):
        if parameter in tensors:
            return parameter
    for parameter in tensors:
        if producer_name(parameter) == name:
            return parameter
    raise UnknownNameError("module or parameter with a width", name, tensors)
