"""A snapshot of torch's process-wide settings, restored even after an interrupt.

Torch's own context managers do not finish their cleanup if Ctrl-C interrupts it: gradients would
stay switched off, a FLOP counter would keep counting, or nothing would be compiled any more.
"""

import contextlib
import contextvars
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _python_dispatch as dispatch

_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class TorchState:
    """A snapshot of gradient recording, modes, autocast, the compiler's stance and attention.

    Attributes:
        gradients: whether gradients are recorded.
        function_modes: the stack of active `TorchFunctionMode`s, outermost first.
        dispatch_modes: the stack of active `TorchDispatchMode`s, outermost first.
        autocast: device type -> whether autocast is enabled, and to which dtype it casts.
        attention: name of an attention kernel -> whether it is enabled.
        stance: what the compiler does with compiled networks (see `torch.compiler.set_stance`);
            None if the compiler is not imported.
    """

    def __init__(self) -> None:
        self.gradients = torch.is_grad_enabled()
        self.function_modes = function_modes()
        self.dispatch_modes = _dispatch_modes()
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in _AUTOCAST
        }
        self.attention = {name: _attention(f"{name}_sdp_enabled") for name in _ATTENTION}
        self.stance = _stance()

    def restore(self) -> None:
        """Restore everything that the snapshot covers."""
        push, pop = _push_mode, pop_function_mode
        _set_stack(self.function_modes, function_modes, push, pop)
        _set_stack(self.dispatch_modes, _dispatch_modes, dispatch._push_mode, dispatch._pop_mode)
        torch.set_grad_enabled(self.gradients)
        for kind, (enabled, dtype) in self.autocast.items():
            if torch.is_autocast_enabled(kind) != enabled:
                torch.set_autocast_enabled(kind, enabled)
            if torch.get_autocast_dtype(kind) != dtype:
                torch.set_autocast_dtype(kind, dtype)
        for name, usable in self.attention.items():
            _attention(f"enable_{name}_sdp", usable)
        if _stance() != self.stance:
            _set_stance(self.stance)


class ThreadState:
    """The settings of torch and the context variables of this thread, for another thread to adopt.

    Torch keeps gradient recording, modes, autocast and CUDA streams separately for each thread.
    """

    def __init__(self) -> None:
        self._torch = TorchState()
        self._inference = torch.is_inference_mode_enabled()
        self._context = contextvars.copy_context()
        self._streams: list[torch.cuda.Stream] = []
        initialized: Callable[[], bool] = torch.cuda.is_initialized
        if initialized():
            current, count = torch.cuda.current_device(), torch.cuda.device_count()
            # Setting a stream selects its device, so the current device comes last.
            order = sorted(range(count), key=lambda index: index == current)
            self._streams = [torch.cuda.current_stream(index) for index in order]

    def run(self, body: Callable[[], None]) -> None:
        """Run a function in the current thread with these settings."""
        with torch.inference_mode() if self._inference else contextlib.nullcontext():
            self._torch.restore()
            for stream in self._streams:
                torch.cuda.set_stream(stream)
            self._context.copy().run(body)


def function_modes() -> list[Any]:
    """Return the stack of active `TorchFunctionMode`s, outermost first."""
    stack: Any = _get_current_function_mode_stack
    return list(stack())


def pop_function_mode() -> None:
    """Leave the innermost `TorchFunctionMode`."""
    pop: Any = _pop_mode
    pop()


def _dispatch_modes() -> list[Any]:
    return list(dispatch._get_current_dispatch_mode_stack())


def _set_stack(kept: list[Any], stack: Any, push: Any, pop: Any) -> None:
    while len(stack()) > len(kept):
        pop()
    for mode in kept[len(stack()) :]:
        push(mode)


def _attention(name: str, *args: bool) -> Any:
    return getattr(torch.backends.cuda, name)(*args)


def _stance() -> Any:
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return None if compiler is None else getattr(compiler, "_stance", None)


def _set_stance(kept: Any) -> None:
    set_stance: Any = torch.compiler.set_stance
    if kept is None:  # the compiler was imported after the snapshot
        set_stance("default")
    else:
        unsafe = kept.skip_guard_eval_unsafe
        set_stance(kept.stance, skip_guard_eval_unsafe=unsafe, force_backend=kept.backend)
