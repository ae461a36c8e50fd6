"""Functions of torch in a form that shows their steps to a `TorchFunctionMode`."""

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F


def _transparent(function: Any) -> Callable[..., Any]:
    """Return a copy of a function that never passes itself as a whole to a `TorchFunctionMode`."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = {**function.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    opened = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


TRANSPARENT: dict[Callable[..., Any], Callable[..., Any]] = {
    function: _transparent(function)
    for function in (
        *(F.multi_head_attention_forward, F.gumbel_softmax, F.gaussian_nll_loss),
        *(F.multilabel_soft_margin_loss, F.triplet_margin_with_distance_loss),
    )
}
"""Function -> a copy whose steps reach the mode under which it runs."""
