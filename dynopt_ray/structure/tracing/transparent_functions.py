"""Functions of torch in a form that shows their steps to a `TorchFunctionMode`."""

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F


def _transparent(function: Any) -> Callable[..., Any]:
    """Return a copy of a function that never passes itself as a whole to a `TorchFunctionMode`."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    opened = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


TRANSPARENT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: _transparent(F.multi_head_attention_forward),
}
"""Function -> a copy whose steps reach the mode under which it runs."""
