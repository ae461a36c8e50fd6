"""Attention, traced through an equivalent written in simple operations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynopt_ray.structure.labels import covering
from dynopt_ray.structure.tracing import Trace, rule


@rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    trace: Trace,
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """Heads are the third dimension from the end; fewer key heads serve several query heads."""
    if scale is None and trace.heads == "dims":
        # The scores are divided by the root of the number of coordinates.
        for label in trace.labels(query):
            if query.ndim - 1 in label.dims:
                trace.mix(label.ids)
    with trace:
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(times, -3) for t in (key, value))
        scores = query @ key.transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask
        result = scores.softmax(-1) @ value
    trace.set(out, trace.labels(result))


@rule("multi_head_attention_forward")
def multi_head_attention(
    trace: Trace,
    out: tuple[Tensor, Tensor | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *_: Any,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    **__: Any,
) -> None:
    """`nn.MultiheadAttention` asks that heads × coordinates equal the width of its input.

    So its heads come and go together with as many coordinates of what it reads.
    """
    weights: Sequence[Tensor | None] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        with trace:
            weights = in_proj_weight.chunk(3)
    biases: Sequence[Tensor | None] = (None, None, None)
    if in_proj_bias is not None:
        with trace:
            biases = in_proj_bias.chunk(3)
    with trace:
        projected = [
            torch.nn.functional.linear(x, w, b)  # type: ignore[arg-type]
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
        for index, extra in ((1, bias_k), (2, bias_v)):
            if extra is not None:
                projected[index] = projected[index] + extra.reshape(-1)
        heads = [t.reshape(*t.shape[:-1], num_heads, -1).movedim(0, -2) for t in projected]
        mixed = (heads[0] @ heads[1].transpose(-2, -1)).softmax(-1) @ heads[2]
        mixed = mixed.movedim(-2, 0).flatten(-2)
        result = torch.nn.functional.linear(mixed, out_proj_weight, out_proj_bias)
    read, made = trace.units(query, -1), trace.units(projected[0], -1)
    if read is not None and made is not None:
        trace.tie(read, made)
        trace.link("embed_dim", read)
        trace.link("head_dim", made.reshape(num_heads, -1)[0]) if trace.heads == "dims" else None
    label = covering(trace.labels(heads[0]), heads[0].ndim - 3)
    if label is not None:
        trace.link("num_heads", label.ids[:, 0] if label.ids.ndim > 1 else label.ids)
    trace.set(out[0], trace.labels(result))
    if out[1] is not None:
        trace.set(out[1], ())
