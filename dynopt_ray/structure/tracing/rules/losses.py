"""Rules for losses, which compare outputs with labels or with other outputs."""

from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.rules.joining import broadcast
from dynopt_ray.structure.tracing.tracer import Trace


@rule(
    *("cross_entropy", "nll_loss", "multi_margin_loss", "ctc_loss", "multilabel_margin_loss"),
    *("cosine_embedding_loss", "hinge_embedding_loss", "margin_ranking_loss"),
    "triplet_margin_loss",
)
def over_classes(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """The loss compares classes with labels, so the number of classes is fixed."""
    for tensor in tensors_in((args, kwargs)):
        trace.use(tensor)
        trace.pin(trace.labels(tensor), "it is compared with labels")
    trace.set(out, ())


@rule(
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "poisson_nll_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss"),
)
def elementwise_loss(
    trace: Trace, out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any
) -> None:
    """An elementwise operation, followed by a mean or sum over everything."""
    operands = [input, target, *tensors_in((args, kwargs))]
    for tensor in operands:
        trace.use(tensor)
    wide = max(operands[:2], key=lambda t: t.ndim)
    labels = broadcast(trace, operands, wide)
    for label in labels:
        trace.mix(label.ids)
    trace.set(out, labels if out.shape == wide.shape else ())
