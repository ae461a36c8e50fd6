"""What a trace did not see: other ways through a forward pass, and what they may lead to."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from dynopt_ray.structure.tracing import Passes, unknown
from dynopt_ray.structure.units import (
    WidthGroup,
    may_use,
    producer_name,
    stated_sizes,
)

_MOST_NAMED = 3
_TO_CALLER_OF_TRACE = 8


def warn_of_other_ways(model: nn.Module, passes: Passes) -> None:
    """Warn if other values may lead the forward pass to operations that were not traced."""
    if not passes.reads.branches:
        return
    message = (
        f"the forward pass decides by values: {_some(map(str, passes.reads.branches))}. Only the "
        "operations that these inputs lead to were traced, and growth is exact as long as the "
        "values decide the same"
    )
    for modules, meaning in (
        (passes.record.followed, "They follow the modules of the same list that ran"),
        (
            dict.fromkeys(map(producer_name, unknown(model, passes.record))),
            "The widths that they may read are fixed: trace with inputs that reach them",
        ),
    ):
        if modules:
            message += f". These inputs did not reach {', '.join(modules)}. {meaning}"
    warnings.warn(message, stacklevel=_TO_CALLER_OF_TRACE)


def warn_of_unreached(
    model: nn.Module,
    passes: Passes,
    tensors: Mapping[str, Tensor],
    groups: Sequence[WidthGroup],
) -> None:
    """Warn of modules that the pass did not reach although the code of the network uses them.

    An argument that is None, the name of a task or another method may lead to them. What they read
    is not known, but it has the size of one of their dimensions. Where values decide, such widths
    are fixed; arguments leave no trace, so an optional layer looks like one that is never used.

    Args:
        model: the network.
        passes: the trace of it.
        tensors: its parameters and buffers.
        groups: the width groups that can be resized.
    """
    if passes.reads.branches:
        return
    for name in dict.fromkeys(_used_elsewhere(model, unknown(model, passes.record))):
        sizes = {
            size
            for parameter, tensor in tensors.items()
            if parameter == name or parameter.startswith(f"{name}.")
            for size in tensor.shape
        }
        alike = [group.name for group in groups if _lies_along(group, tensors, sizes)]
        if alike:
            warnings.warn(
                f"these inputs did not reach {name!r}, which the code of the network uses for "
                "other arguments or in other methods. It would not follow if a width that it "
                f"reads or makes is resized, perhaps {_some(map(repr, alike))}. Trace with inputs "
                "that reach it, or fix these widths (trace(…, fixed=…))",
                stacklevel=_TO_CALLER_OF_TRACE,
            )


def warn_of_stated_sizes(model: nn.Module, groups: Sequence[WidthGroup]) -> None:
    """Warn of methods outside the pass that state a width in a way that no edit can change."""
    by_width: dict[int, list[str]] = defaultdict(list)
    for group in groups:
        by_width[group.width].append(group.name)
    stale = {
        (size.method, size.code): size.value
        for size in stated_sizes(model)
        if size.value > 1 and size.value in by_width and not size.may_follow
    }
    for (method, code), value in stale.items():
        warnings.warn(
            f"{method} makes a tensor of size {code}, which is {value} like the width of "
            f"{_some(map(repr, by_width[value]))} and would not follow it. Take the size from a "
            "layer (self.layer.in_features) or from an attribute that holds a whole number",
            stacklevel=_TO_CALLER_OF_TRACE,
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MOST_NAMED]) + ", …" * (len(listed) > _MOST_NAMED)


def _used_elsewhere(model: nn.Module, unreached: Sequence[str]) -> Iterator[str]:
    """Yield the outermost unreached modules and parameters that methods of the network name."""
    reached = {name for name, _ in model.named_parameters()} - set(unreached)
    for parameter in unreached:
        parts = parameter.split(".")
        name = next(
            outermost
            for outermost in (".".join(parts[:end]) for end in range(1, len(parts) + 1))
            if not any(one == outermost or one.startswith(f"{outermost}.") for one in reached)
        )
        *above, attribute = name.split(".")
        owners = [model.get_submodule(".".join(above[:end])) for end in range(len(above) + 1)]
        if any(may_use(type(owner), attribute) for owner in owners):
            yield name


def _lies_along(group: WidthGroup, tensors: Mapping[str, Tensor], sizes: Iterable[int]) -> bool:
    return any(tensors[s.parameter].shape[s.dim] in sizes for s in group.slices)
