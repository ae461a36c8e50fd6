"""Rules for attention, which is traced as equivalent simple operations."""

from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import covering


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
    """Attention with heads in dimension -3. With `enable_gqa`, query heads share key heads."""
    if scale is None and trace.heads == "dims":
        # The scores are divided by the square root of the number of coordinates.
        for label in trace.labels(query):
            if query.ndim - 1 in label.dims:
                trace.mix(label.ids)
    if attn_mask is not None and attn_mask.ndim > 2:
        mask = covering(trace.labels(attn_mask), attn_mask.ndim - 3)
        if mask is not None and attn_mask.shape[-3] == 1 == query.shape[-3]:
            # A mask for more heads than there are is accepted on some devices only.
            trace.pin(mask.ids, "one attention mask serves all heads")
    with trace:
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(times, -3) for t in (key, value))
        scores = query @ key.transpose(-2, -1)
        trace.forget_consumer(scores)  # compensation does not see these steps
        if attn_mask is not None:
            scores = scores + attn_mask
        result = scores.softmax(-1) @ value
    trace.forget_consumer(result)
    trace.set(out, trace.labels(result))


@rule("multi_head_attention_forward")
def multi_head_attention(trace: Trace, out: Any, query: Tensor, *_: Any, **__: Any) -> None:
    """Link the attributes of `nn.MultiheadAttention`. Its steps have been traced one by one.

    The module requires that heads times coordinates equal the width of its input. So its heads can
    only be resized together with the coordinates of the input.
    """
    del out
    read = trace.units(query, -1)
    if read is not None:
        for attribute in ("embed_dim", "kdim", "vdim"):
            trace.link(attribute, read)
