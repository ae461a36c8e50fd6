"""Run a network without data: on tensors that only have a shape, or on zeros of new shapes."""

import contextlib
import sys
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

from dynopt_ray.structure.preserve import Cache, Surroundings, written_parameters
from dynopt_ray.structure.tracing.calls import Call
from dynopt_ray.structure.tracing.counts import marked
from dynopt_ray.structure.tracing.quantisers import is_quantiser
from dynopt_ray.structure.tracing.tracer import Trace

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""The inputs of a network: one tensor, a tuple of arguments or a dict of keyword arguments."""


_KEEP_INTEGERS = (int, tuple, list)


def call(model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> Any:
    """Return the network's output with its parameters and buffers replaced, without changing it.

    Compiled modules run uncompiled, because nothing should be compiled for a pass without data.
    """
    with uncompiled():
        return functional_call(model, dict(tensors), *_arguments(inputs))


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Return the network's output."""
    args, kwargs = _arguments(inputs)
    return model(*args, **kwargs)


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """Return a context in which compiled modules run uncompiled."""
    if "torch._dynamo" not in sys.modules:  # slow to import; without it, nothing is compiled
        return contextlib.nullcontext()
    stance: Any = torch.compiler.set_stance
    eager: contextlib.AbstractContextManager[object] = stance("force_eager")
    return eager


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; a shared one appears once, under its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def on_device(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Return the inputs on a device, detached."""
    return cast(Inputs, tree_map_only(Tensor, lambda t: t.detach().to(device), inputs))


def placeholder_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], device: torch.device | str
) -> dict[str, Tensor]:
    """Return tensors of the shapes in `shapes`; the others keep their own.

    On the meta device they have no values. On any other, a network runs that looks at values: then
    tensors of their own shape are copies, so that switches stay as they are, and others are zero.
    """
    device = torch.device(device)
    made = {}
    for name, tensor in tensors.items():
        shape = tuple(shapes.get(name, tensor.shape))
        if device.type == "meta":
            made[name] = torch.empty(shape, dtype=tensor.dtype, device=device)
        elif shape == tensor.shape:
            made[name] = tensor.detach().to(device, copy=True)
        else:
            made[name] = torch.zeros(shape, dtype=tensor.dtype, device=device)
    return made


class undisturbed:  # noqa: N801
    """Context that runs a network without gradients and without side effects.

    It restores everything that `Surroundings` covers. On entry it returns a dict. After the exit,
    the dict holds the attributes in which the pass kept tensors; see `Surroundings.caches`.

    Args:
        model: the network that will run.
        training: whether it runs in training mode; None leaves each module in its own mode.
    """

    def __init__(self, model: nn.Module, training: bool | None = None) -> None:
        self._model, self._training = model, training
        self._surroundings = Surroundings(model)

    def __enter__(self) -> dict[Cache, Any]:
        try:
            if self._training is not None:
                self._model.train(self._training)
            torch.set_grad_enabled(False)
        except BaseException:
            self._surroundings.restore()
            raise
        return self._surroundings.caches

    def __exit__(self, *_: object) -> None:
        self._surroundings.restore()


@contextlib.contextmanager
def buffers_kept(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Restore what a pass writes, also in evaluation mode: counters, averages, momentum encoders.

    These are buffers, and the parameters that the pass of a trace has written.

    Args:
        model: the network that will run.
        tensors: the tensors that it will run with, by name. Default: its own buffers.
    """
    tensors = tensors or named_tensors(model)
    written = written_parameters(model)
    kept = [tensors[name] for name, _ in model.named_buffers()]
    kept += [tensors[name] for name, _ in model.named_parameters() if name in written]
    copies = [tensor.detach().clone() for tensor in kept]
    versions = [tensor._version for tensor in kept]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copied, version in zip(kept, copies, versions, strict=True):
                if tensor._version != version:
                    if tensor.shape != copied.shape:  # statistics get their size in a first pass
                        tensor.resize_(copied.shape)
                    tensor.copy_(copied)


@contextlib.contextmanager
def modules_known(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Maintain the stack `trace.running`, and replace integer attributes of modules by `Kept`.

    Use it within `undisturbed`, which restores the attributes.
    """
    names = {module: name for name, module in model.named_modules()}
    trace.modules = {name: module for module, name in names.items()}
    trace.quantisers = frozenset(filter(is_quantiser, names))
    for module, name in names.items():
        attributes = vars(module)
        for key, value in [*attributes.items()]:
            if type(value) in _KEEP_INTEGERS and not key.startswith("_"):
                attributes[key] = marked(value, name, key, trace.record)

    def enter(module: nn.Module, _: Any) -> None:
        trace.running.append((names.get(module, ""), module))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        trace.running.pop()
        if trace.record.with_costs:
            call = Call(args, {}, output)
            trace.calls.setdefault(names.get(module, ""), []).append(
                (call.passes_on, call.num_others)
            )

    # Not `with_kwargs=True`: torch keeps that setting of a global hook after the hook is removed.
    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave),
    ]
    try:
        yield
        for quantiser in trace.quantisers:
            _pin_unread(trace, names[quantiser], quantiser)
    finally:
        for handle in handles:
            handle.remove()
        trace.running.clear()


def _pin_unread(trace: Trace, name: str, quantiser: nn.Module) -> None:
    """Pin the statistics of a quantiser that no rule has read in a pass.

    It is switched off, or they describe a whole tensor. Either way the pass did reach them.
    """
    record = trace.record
    for key, buffer in quantiser.named_buffers(prefix=name):
        if key not in record.first_use:
            record.first_use[key] = len(record.first_use)
            for dim in range(buffer.ndim if (key, 0) in record.parameter_ids else 0):
                trace.pin(record.parameter_ids[key, dim], "it describes no single unit")
