"""The description of a traced network: its width groups and everything that follows them.

A network is first traced at its own sizes, which yields candidate width groups. Each candidate must
then be proven: the network must run with another width of that group. A candidate that passes is
listed in `Description.groups`. One that fails is listed in `Description.fixed` with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynopt_ray.errors import TraceError, UnknownNameError
from dynopt_ray.structure.costs import CostModel
from dynopt_ray.structure.preserve import (
    Cache,
    CollectorPaused,
    Surroundings,
    sharing_memory,
    within,
)
from dynopt_ray.structure.tracing import (
    Heads,
    Inputs,
    Passes,
    Verified,
    Verifier,
    empty_caches,
    named_tensors,
    trace_at_own_sizes,
)
from dynopt_ray.structure.units import (
    Attribute,
    Consumer,
    WeightNorm,
    WidthGroup,
    outside_sizes,
    producer_name,
)
from dynopt_ray.structure.untraced import (
    warn_of_other_ways,
    warn_of_stated_sizes,
    warn_of_unreached,
)

_BY_CALLER = "the caller fixed it"
# Name of a wrapper class -> where its inner module is. Names are compared, because importing these
# rarely used classes takes long.
_WRAPPERS = {
    "DistributedDataParallel": " (.module)",
    "FullyShardedDataParallel": " before it is sharded",
    "FSDPModule": " before it is sharded",
    "DataParallel": " (.module)",
}


@dataclass(frozen=True, eq=False)
class TraceArguments:
    """The arguments of `trace`; see there."""

    example_inputs: Inputs
    fixed: tuple[str, ...]
    heads: Heads


@dataclass(frozen=True, eq=False)
class Description:
    """Everything known about a network at its current depth.

    Attributes:
        groups: the width groups that can be resized, in forward order.
        index: name of a group, or of a module or parameter that produces it -> position in
            `groups`. Edits change the contents of a group, never its name or position.
        fixed: the modules, parameters and dimensions of parameters that cannot be resized:
            name -> reason.
        attributes: integer attributes of modules that follow a width.
        caches: where modules keep tensors of an earlier pass -> the value without them.
        consumers: parameter name -> the operations that read units through the parameter.
        blocks: the modules that `Remove` can take out; see `Graph`.
        weight_norms: the weights that are computed from gains and directions.
        nonlinear: the (parameter, dimension) pairs that read units in a way that is not linear in
            the weights, because these are normalised.
        cost_model: computes costs from widths.
        output_sizes: the shapes of all output tensors on the example inputs.
    """

    groups: tuple[WidthGroup, ...]
    index: Mapping[str, int]
    fixed: dict[str, str]
    attributes: tuple[Attribute, ...]
    caches: Mapping[Cache, Any]
    consumers: Mapping[str, Sequence[Consumer]]
    blocks: dict[str, int | None]
    weight_norms: tuple[WeightNorm, ...]
    nonlinear: frozenset[tuple[str, int]]
    cost_model: CostModel
    output_sizes: tuple[torch.Size, ...]


def describe(model: nn.Module, arguments: TraceArguments) -> Description:
    """Trace a network and prove each of its widths; see `trace` for errors and warnings."""
    if arguments.heads not in get_args(Heads):
        raise UnknownNameError("unit of attention", arguments.heads, get_args(Heads))
    _check_model(model)
    named = named_tensors(model)
    pinned = {(_produced_by(named, name), 0): _BY_CALLER for name in arguments.fixed}

    inputs, heads = arguments.example_inputs, arguments.heads

    def proven() -> tuple[Mapping[str, Tensor], Passes, Verified]:
        empty_caches(model, inputs)
        tensors = named_tensors(model)  # without the buffers that are caches
        held = pinned | _in_shared_memory(tensors) | _orthogonal(model, tensors)
        passes = trace_at_own_sizes(model, inputs, tensors, heads, held)
        outside = outside_sizes(model, passes.record, passes.grouping)
        if outside.tie:
            passes = trace_at_own_sizes(model, inputs, tensors, heads, held, outside.tie)
            now = outside_sizes(model, passes.record, passes.grouping)
            outside = replace(now, tie=outside.tie)
        warn_of_other_ways(model, passes)
        verifier = Verifier(model, inputs, tensors, passes, heads, outside)
        verdict = verifier.verdict()
        warn_of_unreached(model, passes, tensors, verdict.groups)
        warn_of_stated_sizes(model, verdict.groups)
        return tensors, passes, verdict

    surroundings = Surroundings(model)
    tensors, passes, verdict = within(CollectorPaused(), lambda: within(surroundings, proven))
    groups = tuple(verdict.groups)
    # A group's own name takes precedence. The name of a module that produces several groups means
    # the first of them.
    index = {name: i for i, g in reversed([*enumerate(groups)]) for name in g.producers}
    index.update((group.name, i) for i, group in enumerate(groups))
    owners = {name for name, module in model.named_modules() if [*module.parameters()]}
    return Description(
        groups=groups,
        index=index,
        fixed={**passes.grouping.fixed, **verdict.fixed},
        attributes=tuple(verdict.attributes),
        caches=passes.record.caches,
        consumers=passes.record.consumers,
        blocks={name: more for name, more in passes.record.blocks.items() if name in owners},
        weight_norms=tuple(dict.fromkeys(passes.record.weight_norms)),
        nonlinear=passes.record.nonlinear(),
        cost_model=CostModel(tensors, passes.record, passes.grouping.only(verdict.groups)),
        output_sizes=passes.output_sizes,
    )


def _in_shared_memory(tensors: Mapping[str, Tensor]) -> dict[tuple[str, int], str]:
    """Return the dimensions of tensors that share memory with another one, with the reason."""
    return {
        (name, dim): f"it shares memory with {other!r}"
        for name, other in sharing_memory(tensors).items()
        if tensors[name].is_floating_point() or tensors[name].is_complex()
        for dim in range(tensors[name].ndim)
    }


def _orthogonal(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[tuple[str, int], str]:
    """Return the dimensions of weights that torch keeps orthogonal, with the reason."""
    inside = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if any(type(child).__name__ == "_Orthogonal" for child in module.children())
    )
    return {
        (name, dim): "its weight is kept orthogonal, which no edit of its size preserves"
        for name, tensor in tensors.items()
        if inside and name.startswith(inside)
        for dim in range(tensor.ndim)
    }


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"{model!r} is not a torch module")
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{what} is TorchScript, which is compiled for its current sizes. Trace and edit "
                "the Python module that it was made from, and script it again after each edit."
            )
        if hasattr(module, "_orig_mod"):
            raise TraceError(
                f"{what} is compiled for its current sizes. Trace and edit the original module "
                "instead (._orig_mod of torch.compile); the module that torch.compile returned "
                "follows by itself. Compile a single layer in place, with its method .compile()."
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
            "the network has lazy layers, whose shapes are unknown. Run it once on real data "
            "before tracing."
        )


def _produced_by(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return the parameter whose first dimension is the width that a name stands for."""
    for parameter in (name, f"{name}.weight", f"{name}.bias"):
        if parameter in tensors:
            return parameter
    for parameter in tensors:
        if producer_name(parameter) == name:
            return parameter
    inside = dict.fromkeys(producer_name(p) for p in tensors if p.startswith(f"{name}."))
    if inside:
        raise TraceError(
            f"fixed: {name!r} is a container; name what is inside: {', '.join(map(repr, inside))}"
        )
    raise UnknownNameError("module or parameter with a width", name, tensors)
