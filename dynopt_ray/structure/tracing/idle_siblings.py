"""Modules that a pass did not reach, although another module like them in the same list ran.

Experts without tokens, layers beyond the depth of the example and the later exits of a network
read the same widths as the modules beside them that did run. If these widths change, they must
follow, or the network fails as soon as other data reach them. So they run once more on what their
sibling got, and their results are tied to its results. What belongs to them alone stays "not
reached".
"""

import contextlib
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.tracing.values import OtherWayError
from dynopt_ray.structure.units import Key

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_ALIKE = "another module of the same list makes it in another form"


@dataclass(frozen=True, eq=False)
class _SiblingCall:
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


Siblings = Sequence[tuple[str, nn.Module]]
"""The modules of one list, by name, that have the same class and parameters of the same shapes."""


class IdleSiblings:
    """Notes the calls of the modules in lists, and runs those that were not called.

    Use it as a context around a pass.

    Args:
        families: the modules that are alike.
    """

    def __init__(self, families: Sequence[Siblings]) -> None:
        self._families = families
        self._calls: dict[str, _SiblingCall] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "IdleSiblings":
        for name, module in {name: m for family in self._families for name, m in family}.items():

            def note(_: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                self._calls.setdefault(name, _SiblingCall(args, kwargs, output))

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
            called = [self._calls[name] for name, _ in family if name in self._calls]
            idle = [(n, m) for n, m in family if n not in self._calls]
            for name, module in idle if called else ():
                with _apart(trace):
                    if _run_alike(trace, module, _inside(name, tensors), called[0]):
                        followed.append(name)
        return followed


def partly_idle(model: nn.Module, reached: Container[str]) -> list[Siblings]:
    """Return the families of which a pass reached some modules, and others not at all.

    Args:
        model: the network.
        reached: the names of the parameters that the pass reached.
    """
    idle = {
        name
        for name, module in model.named_modules()
        if not any(f"{name}.{parameter}" in reached for parameter, _ in module.named_parameters())
    }
    return [f for f in _families(model) if 0 < sum(name in idle for name, _ in f) < len(f)]


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


def _families(model: nn.Module) -> Iterator[Siblings]:
    for parent, module in model.named_modules():
        if not isinstance(module, _LISTS):
            continue
        alike: dict[Any, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, child in module.named_children():
            shapes = tuple((n, tuple(p.shape)) for n, p in child.named_parameters())
            if shapes:
                alike[type(child), shapes].append((f"{parent}.{name}" if parent else name, child))
        yield from (family for family in alike.values() if len(family) > 1)


def _inside(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a module by the names that they have in it."""
    prefix = f"{module}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _run_alike(
    trace: Trace, module: nn.Module, tensors: dict[str, Tensor], call: _SiblingCall
) -> bool:
    """Run a module like its sibling and tie the results; return whether it can run like that."""
    try:
        output: Any = functional_call(module, tensors, call.args, dict(call.kwargs))
    except OtherWayError:
        raise
    except OF_THE_MACHINE:
        raise
    except Exception:  # a module of the user's own may need other arguments
        return False
    for one, other in zip(tensors_in(call.output), tensors_in(output), strict=False):
        _tie_alike(trace, one, other)
    return True


def _tie_alike(trace: Trace, one: Tensor, other: Tensor) -> None:
    pairs: Sequence[tuple[Tensor, Tensor]] = ((one, other), (other, one))
    for this, that in pairs:
        for label in trace.labels(this):
            twin = next((o for o in trace.labels(that) if o.dims == label.dims), None)
            if twin is not None and twin.ids.shape == label.ids.shape:
                trace.tie(label.ids, twin.ids)
            else:
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
