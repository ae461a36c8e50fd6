"""Functions of torch that hide their steps from a mode, opened."""

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F


def _opened(function: Any) -> Callable[..., Any]:
    """The same code, which never hands itself over as a whole to a `TorchFunctionMode`."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    opened = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: _opened(F.multi_head_attention_forward),
}
"""Function -> the same, whose steps reach the mode that runs it."""
