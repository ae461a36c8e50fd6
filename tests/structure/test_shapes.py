"""Shapes told without torch are those that torch finds; what torch refuses is left to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dynopt_ray.structure.tracing.torch_functions.meta_results import _ALIKE, _BINARY, shape_only


def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


X, V, W = meta(2, 3, 4, 5), meta(3), meta(7, 5)
Q, K = meta(2, 6, 4, 8), meta(2, 6, 9, 8)

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def alike(name: str) -> Call:
    return (getattr(F, name, None) or getattr(torch, name)), (X,), {}


PLAIN: list[Call] = [
    *map(alike, _ALIKE),
    *((getattr(torch.Tensor, name), (X, X), {}) for name in _BINARY),
    *((getattr(torch.Tensor, name), (X, meta(4, 1)), {}) for name in _BINARY),
    *((getattr(torch.Tensor, name), (X, 2), {}) for name in _BINARY),
    (F.gelu, (X,), {"approximate": "tanh"}),
    (F.linear, (X, W), {}),
    (F.linear, (X, W, meta(7)), {}),
    (F.linear, (meta(5), W, meta(7)), {}),
    (F.batch_norm, (X, V, V, V, V, False, 0.1, 1e-5), {}),
    (F.batch_norm, (X, V, V), {"eps": 1e-5}),
    (F.layer_norm, (X, (4, 5), meta(4, 5), None, 1e-5), {}),
    (F.layer_norm, (X, [5]), {"eps": 1e-5}),
    (F.rms_norm, (X, (5,), meta(5), 1e-5), {}),
    (F.scaled_dot_product_attention, (Q, K, meta(2, 6, 9, 3)), {"is_causal": False}),
    (F.scaled_dot_product_attention, (Q, K, K), {"attn_mask": None, "dropout_p": 0.1}),
]

OTHERS: list[Call] = [
    (torch.Tensor.add, (meta(4, 1), X), {}),
    (torch.Tensor.add, (X, meta(5, dtype=torch.float64)), {}),
    (torch.Tensor.add, (X, meta(6)), {}),
    (torch.Tensor.add, (X, X), {"alpha": 2}),
    (F.linear, (X, meta(7, 6)), {}),
    (F.linear, (X, meta(5)), {}),
    (F.linear, (X, W, meta(6)), {}),
    (F.batch_norm, (X, V, V, None, None, True), {}),
    (F.batch_norm, (X, meta(4), V), {}),
    (F.layer_norm, (X, (4,)), {}),
    (F.layer_norm, (X, (5,), meta(4)), {}),
    (F.scaled_dot_product_attention, (Q, meta(2, 6, 9, 7), K), {}),
    (F.scaled_dot_product_attention, (Q, K, K), {"attn_mask": meta(4, 9)}),
    (F.relu, (meta(2, dtype=torch.int64),), {}),
    (F.relu, (torch.zeros(2),), {}),
    (F.conv2d, (X, meta(3, 3, 1, 1)), {}),
]


@pytest.mark.parametrize(("operation", "args", "options"), PLAIN)
def test_shapes_are_those_of_torch(
    operation: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    expected, found = operation(*args, **options), shape_only(operation, args, options)
    assert found is not None
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.is_meta


@pytest.mark.parametrize(("operation", "args", "options"), OTHERS)
def test_the_rest_is_left_to_torch(
    operation: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert shape_only(operation, args, options) is None


def test_in_place_operations_give_their_input() -> None:
    assert shape_only(F.relu, (X,), {"inplace": True}) is X
