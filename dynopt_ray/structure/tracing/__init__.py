"""Tracing: follow unit ids through a forward pass, and run networks without data."""

from dynopt_ray.structure.tracing.calls import Call, recorded
from dynopt_ray.structure.tracing.forward import (
    Inputs,
    buffers_kept,
    call,
    moved,
    named_tensors,
    run,
    shells,
    undisturbed,
)
from dynopt_ray.structure.tracing.nested_tensors import given_tensors, tensors_in
from dynopt_ray.structure.tracing.opened_functions import OPENED
from dynopt_ray.structure.tracing.passes import Passes, trace_at_own_sizes, unused
from dynopt_ray.structure.tracing.readers import Convolution, Reader, SumOfProducts, as_products
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.tracer import Heads, Trace
from dynopt_ray.structure.tracing.verification import Verified, Verifier

__all__ = [
    "OPENED",
    "Call",
    "Convolution",
    "Heads",
    "Inputs",
    "Passes",
    "Reader",
    "SumOfProducts",
    "Trace",
    "Verified",
    "Verifier",
    "as_products",
    "buffers_kept",
    "call",
    "given_tensors",
    "moved",
    "named_tensors",
    "recorded",
    "rule",
    "run",
    "shells",
    "tensors_in",
    "trace_at_own_sizes",
    "undisturbed",
    "unused",
]
