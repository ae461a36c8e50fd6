"""Modules that a pass did not reach, although another module in the same list ran.

Experts without tokens, layers beyond the depth of the example, the later exits of a network and the
heads of other tasks read the same widths as the modules beside them that did run. If these widths
change, they must follow, or the network fails as soon as other data reach them. So they run once
more on what their sibling got, and their results are tied to its results. What belongs to them
alone stays "not reached".

Modules of one class whose parameters have the same shapes are alike. Without a sibling that is
alike, a module runs on what each sibling of its class got, because it is not known which of them it
stands beside. If it runs on none of these inputs, it is left to the caller. The modules of a list
may also be a chain, in which one reads what another made. Unless several of them have read the same
units, an idle module runs on what its siblings made, too.
"""

import contextlib
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.structure.tracing.calls import Call
from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.tracing.values import OtherWayError
from dynopt_ray.structure.units import Key

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_ALIKE = "another module of the same list makes it in another form"


Members = Sequence[tuple[str, nn.Module]]
"""Modules of one list, with their names."""


@dataclass(frozen=True, eq=False)
class Siblings:
    """Modules of one list of which a pass reached some; they have one class.

    Attributes:
        members: the modules, with their names.
        alike: whether their parameters have the same shapes. If not, the members that were not
            reached come first, and perhaps none was reached.
    """

    members: Members
    alike: bool


class IdleSiblings:
    """Notes the calls of the modules in lists, and runs those that were not called.

    Use it as a context around a pass.

    Args:
        families: the modules of which a pass may reach only some.
    """

    def __init__(self, families: Sequence[Siblings]) -> None:
        self._families = families
        self._calls: dict[str, Call] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "IdleSiblings":
        for name, module in {n: m for family in self._families for n, m in family.members}.items():

            def note(_: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                self._calls.setdefault(name, Call(args, kwargs, output))

            self._handles.append(module.register_forward_hook(note, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def follow(self, trace: Trace, tensors: Mapping[str, Tensor]) -> list[str]:
        """Run idle modules like their siblings, within the trace and after the pass.

        Args:
            trace: the trace of the pass.
            tensors: the network's parameters and buffers in this pass.

        Returns:
            The names of the modules that ran.
        """
        followed = []
        for family in self._families:
            called = [self._calls[name] for name, _ in family.members if name in self._calls]
            idle = [(n, m) for n, m in family.members if n not in self._calls]
            told = called[:1] if family.alike else called
            if not _side_by_side(trace, called):
                after = called[-1:] if family.alike else called
                told = [*told, *filter(None, map(_next_in_chain, after))]
            for name, module in idle:
                inside = _inside(name, tensors)
                ran = [_follows(trace, module, inside, one, alike=family.alike) for one in told]
                if any(ran):
                    followed.append(name)
        return followed


def _side_by_side(trace: Trace, calls: Sequence[Call]) -> bool:
    """Return whether several modules read the same units; otherwise they may be a chain."""
    read = [
        [label.ids for label in trace.labels(call.first)]
        for call in calls
        if isinstance(call.first, Tensor)
    ]
    return len(read) > 1 and all(
        len(one) == len(read[0]) and all(map(np.array_equal, one, read[0])) for one in read
    )


def _next_in_chain(call: Call) -> Call | None:
    """Return the call of a module that reads what another one made."""
    if not isinstance(call.result, Tensor):
        return None
    if call.args:
        return Call((call.result, *call.args[1:]), call.kwargs, call.output)
    first = next(iter(call.kwargs), None)
    return None if first is None else Call((), {**call.kwargs, first: call.result}, call.output)


def partly_idle(model: nn.Module, reached: Container[str]) -> list[Siblings]:
    """Return the families of modules in lists of which a pass reached some, but not all.

    Args:
        model: the network.
        reached: the names of the parameters that the pass reached.
    """
    found: list[Siblings] = []
    for parent, module in model.named_modules():
        if isinstance(module, _LISTS):
            children = [(f"{parent}.{n}" if parent else n, m) for n, m in module.named_children()]
            idle = {name for name, child in children if _is_idle(name, child, reached)}
            found += _partly_idle_in(children, idle) if len(idle) < len(children) else ()
    return found


def _is_idle(name: str, module: nn.Module, reached: Container[str]) -> bool:
    return not any(f"{name}.{parameter}" in reached for parameter, _ in module.named_parameters())


def _partly_idle_in(children: Members, idle: Container[str]) -> Iterator[Siblings]:
    """Yield the families of one list."""
    kinds: dict[Any, list[tuple[str, nn.Module]]] = defaultdict(list)
    alike: dict[Any, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, child in children:
        shapes = tuple((n, tuple(p.shape)) for n, p in child.named_parameters())
        if shapes:
            kinds[type(child), tuple(n for n, _ in shapes)].append((name, child))
            alike[type(child), shapes].append((name, child))
    if all(name in idle for members in alike.values() for name, _ in members):
        return
    alone = set()
    for members in alike.values():
        num_idle = sum(name in idle for name, _ in members)
        if 0 < num_idle < len(members):
            yield Siblings(members, alike=True)
        elif num_idle:
            alone |= {name for name, _ in members}
    for members in kinds.values():
        here = [(name, child) for name, child in members if name in alone]
        if here:
            ran = [(name, child) for name, child in members if name not in idle]
            yield Siblings([*here, *ran], alike=False)


def read_by_siblings(model: nn.Module, reached: Container[str]) -> dict[Key, str]:
    """Return the dimensions that parameters of one list have, if a pass reached only some of them.

    A parameter cannot be run like a module. So the dimensions of those that were reached keep their
    sizes; each has a reason.
    """
    fixed: dict[Key, str] = {}
    for parent, module in model.named_modules():
        if not isinstance(module, nn.ParameterList | nn.ParameterDict):
            continue
        alike: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in module.named_parameters(parent):
            alike[parameter.shape].append(name)
        for shape, names in alike.items():
            idle = next((name for name in names if name not in reached), None)
            if idle is not None:
                reason = f"{idle}, which this example did not reach, may read it"
                keys = product((n for n in names if n in reached), range(len(shape)))
                fixed.update(dict.fromkeys(keys, reason))
    return fixed


def _inside(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a module by the names that they have in it."""
    prefix = f"{module}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _follows(
    trace: Trace, module: nn.Module, tensors: dict[str, Tensor], call: Call, *, alike: bool
) -> bool:
    """Run a module like its sibling and tie the results; return whether it can run like that."""
    with _apart(trace):
        try:
            output: Any = functional_call(module, tensors, call.args, dict(call.kwargs))
        except OtherWayError:
            raise
        except OF_THE_MACHINE:
            raise
        except Exception:  # a module of the user's own may need other arguments
            return False
        for one, other in zip(tensors_in(call.output), tensors_in(output), strict=False):
            _tie_results(trace, one, other, alike=alike)
    return True


def _tie_results(trace: Trace, one: Tensor, other: Tensor, *, alike: bool) -> None:
    pairs: Sequence[tuple[Tensor, Tensor]] = ((one, other), (other, one))
    for this, that in pairs:
        for label in trace.labels(this):
            twin = next((o for o in trace.labels(that) if o.dims == label.dims), None)
            if twin is not None and twin.ids.shape == label.ids.shape:
                trace.tie(label.ids, twin.ids)
            elif alike:
                trace.pin(label.ids, _ALIKE)


@contextlib.contextmanager
def _apart(trace: Trace) -> Iterator[None]:
    """Keep nothing of a run but what must be resized together: no costs, uses, or readers."""
    record = trace.record
    work, made, passages = len(record.work), len(record.made), len(record.passages)
    used, calls = dict(record.first_use), dict(trace.calls)
    consumers = {name: [*uses] for name, uses in record.consumers.items()}
    try:
        yield
    finally:
        del record.work[work:], record.made[made:], record.passages[passages:]
        record.first_use = used
        record.consumers = defaultdict(list, consumers)
        trace.calls = calls
