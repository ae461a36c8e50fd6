"""Results of common operations on meta tensors, computed from shapes without running torch.

On the meta device, torch computes most shapes by decompositions in Python, which take longer than
everything else in a trace. The functions here cover the simple cases. All other cases, and all
errors, are left to torch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIKE = (
    *("celu", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("log", "logsigmoid", "mish", "neg", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu"),
    *("softplus", "softsign", "sqrt", "square", "tanh"),
)
_BINARY = ("add", "sub", "mul", "div", "__add__", "__sub__", "__mul__", "__truediv__")


def shape_only(func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
    """Return the operation's result as a meta tensor; None if torch must compute it."""
    known = _KNOWN.get(func)
    if known is None or not args or not _is_plain(args[0]):
        return None
    try:
        found = known(*args, **kwargs)
    except TypeError:  # arguments that the simple case does not have
        return None
    return found


def _is_plain(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta and tensor.is_floating_point()


def _fit(input: Tensor, shape: tuple[int, ...], *parameters: Tensor | None) -> bool:
    """Return whether the parameters have this shape and the input's dtype."""
    return all(p is None or (p.shape == shape and p.dtype == input.dtype) for p in parameters)


def _alike(input: Tensor, *, inplace: bool = False) -> Tensor:
    return input if inplace else torch.empty_like(input)


def _gelu(input: Tensor, **_: str) -> Tensor:
    return torch.empty_like(input)


def _binary(one: Tensor, other: Tensor | float) -> Tensor | None:
    if isinstance(other, float | int):
        return torch.empty_like(one)
    if not _fit(one, other.shape, other):
        return None
    missing = one.ndim - other.ndim
    if missing >= 0 and all(
        b in (1, a) for a, b in zip(one.shape[missing:], other.shape, strict=True)
    ):
        return torch.empty_like(one)
    return None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    num_outputs, *inputs = weight.shape
    fits = _fit(input, (num_outputs, input.shape[-1]), weight) and _fit(input, (num_outputs,), bias)
    return input.new_empty((*input.shape[:-1], num_outputs)) if fits and inputs else None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *_: float,
    **__: float,
) -> Tensor | None:
    # Training mode is left to torch, which refuses inputs with too few values per channel.
    parameters = (running_mean, running_var, weight, bias)
    fits = not training and _fit(input, (input.shape[1],), *parameters)
    return torch.empty_like(input) if fits else None


def _layer_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: float,
    **__: float,
) -> Tensor | None:
    shape = tuple(normalized_shape)
    fits = input.shape[input.ndim - len(shape) :] == shape and _fit(input, shape, weight, bias)
    return torch.empty_like(input) if fits else None


def _rms_norm(
    input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None = None, *_: float
) -> Tensor | None:
    return _layer_norm(input, normalized_shape, weight)


def _attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor | None:
    fits = (
        all(o is None or o is False or name in _NO_SHAPE for name, o in options.items())
        and _fit(query, (*query.shape[:-2], *key.shape[-2:]), key)
        and _fit(query, (*key.shape[:-1], value.shape[-1]), value)
        and query.shape[-1] == key.shape[-1]
    )
    return query.new_empty((*query.shape[:-1], value.shape[-1])) if fits else None


_NO_SHAPE = {"dropout_p", "is_causal", "scale"}

_KNOWN: dict[Any, Callable[..., Tensor | None]] = {
    **{
        getattr(space, name): known
        for names, known in ((_ALIKE, _alike), (_BINARY, _binary))
        for name in names
        for space in (torch, Tensor, F)
        if hasattr(space, name)
    },
    F.gelu: _gelu,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
}
