"""Running a network without data: its parameters replaced by shapes, or by zeros of a new size."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_map_only

from dynopt_ray.structure.counts import marked
from dynopt_ray.structure.tracing import Trace

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a network is called with: one tensor, positional arguments or keyword arguments."""


_CONTAINERS = (dict, list, set)
_KEEP_INTEGERS = (int, tuple, list)


def call(model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> Any:
    """The network's output with its parameters and buffers replaced; nothing of it changes."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        kwargs = inputs
    else:
        args = inputs if isinstance(inputs, tuple) else (inputs,)
    return functional_call(model, dict(tensors), args, kwargs)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a shared one appears once, under its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The same inputs on a device."""
    return cast(Inputs, tree_map_only(Tensor, lambda t: t.detach().to(device), inputs))


def shells(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], device: torch.device | str
) -> dict[str, Tensor]:
    """Tensors without content: of a new shape where `shapes` has one, else of their own."""
    return {
        name: torch.zeros(tuple(shapes.get(name, t.shape)), dtype=t.dtype, device=device)
        for name, t in tensors.items()
    }


@contextlib.contextmanager
def undisturbed(
    model: nn.Module, training: bool | None = None
) -> Iterator[list[tuple[nn.Module, str]]]:
    """Leaves modes, attributes, gradients' switch and random state as they were.

    A forward pass may keep what it computes in attributes (flattened weights, rotary tables) or
    register hooks; of a pass on tensors without data, that would be of no use to the next real
    one.

    Args:
        model: the network that will run.
        training: the mode to run it in; None for the mode each module is in.

    Yields:
        A list that holds, afterwards, the modules and their dicts in which it kept tensors.
    """
    attributes = {module: dict(vars(module)) for module in model.modules()}
    contents = {
        (module, key): (value, copy.copy(value) if value else ())
        for module, before in attributes.items()
        for key, value in before.items()
        if isinstance(value, _CONTAINERS)
    }
    kept: list[tuple[nn.Module, str]] = []
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        if training is not None:
            model.train(training)
        with torch.random.fork_rng(devices=sorted(d.index for d in devices)), torch.no_grad():
            yield kept
    finally:
        for place, (value, content) in contents.items():
            if not value and not content:
                continue
            if isinstance(value, dict) and any(
                isinstance(entry, Tensor) and key not in content for key, entry in value.items()
            ):
                kept.append(place)
            _refill(value, content)
        for module, before in attributes.items():
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


def _refill(value: Any, content: Any) -> None:
    """The container itself as it was: others may hold it too."""
    if isinstance(value, list):
        value[:] = content
    else:
        value.clear()
        value.update(content)


@contextlib.contextmanager
def modules_known(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Keeps `trace.running` at the modules that are running, and marks the integers they keep.

    Within `undisturbed`, which puts the attributes back.
    """
    names = {module: name for name, module in model.named_modules()}
    trace.modules = {name: module for module, name in names.items()}
    for module, name in names.items():
        attributes = vars(module)
        for key, value in [*attributes.items()]:
            if type(value) in _KEEP_INTEGERS and not key.startswith("_"):
                attributes[key] = marked(value, name, key, trace.record)

    def enter(module: nn.Module, _: Any) -> None:
        trace.running.append((names.get(module, ""), module))

    def leave(*_: Any) -> None:
        trace.running.pop()

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        trace.running.clear()
