"""Running a network without data: its parameters replaced by shapes, or by zeros of a new size."""

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

from dynopt_ray.structure.surroundings import Surroundings
from dynopt_ray.structure.tracing import Trace

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a network is called with: one tensor, positional arguments or keyword arguments."""


def call(model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> Any:
    """The network's output with its parameters and buffers replaced; nothing of it changes.

    What is compiled in it runs as it was written: nothing is compiled for passes without data.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        kwargs = inputs
    else:
        args = inputs if isinstance(inputs, tuple) else (inputs,)
    with _uncompiled():
        return functional_call(model, dict(tensors), args, kwargs)


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    if "torch._dynamo" not in sys.modules:  # takes long to import, and nothing is compiled yet
        return contextlib.nullcontext()
    stance: Any = torch.compiler.set_stance
    eager: contextlib.AbstractContextManager[object] = stance("force_eager")
    return eager


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


def undisturbed(model: nn.Module, training: bool | None = None) -> contextlib.ExitStack:
    """Runs a network without gradients and leaves all around it as it was; see `Surroundings`.

    Args:
        model: the network that will run.
        training: the mode to run it in; None for the mode each module is in.

    Returns:
        The context to run it in.
    """
    surroundings = Surroundings(model)
    with contextlib.ExitStack() as stack:
        stack.callback(surroundings.restore)
        if training is not None:
            model.train(training)
        torch.set_grad_enabled(False)
        return stack.pop_all()


@contextlib.contextmanager
def module_names(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Keeps `trace.running` at the modules that are running, with their names."""
    names = {module: name for name, module in model.named_modules()}

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
