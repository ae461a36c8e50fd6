"""Tracing: follow unit ids through a forward pass, and run networks without data."""

from dynopt_ray.structure.tracing.cache_trials import empty_caches
from dynopt_ray.structure.tracing.calls import Call, record_calls
from dynopt_ray.structure.tracing.forward import (
    Inputs,
    buffers_kept,
    call,
    named_tensors,
    on_device,
    placeholder_tensors,
    run,
    uncompiled,
    undisturbed,
)
from dynopt_ray.structure.tracing.nested_tensors import output_tensors, tensors_in
from dynopt_ray.structure.tracing.passes import Passes, trace_at_own_sizes, unknown
from dynopt_ray.structure.tracing.readers import Convolution, Reader, SumOfProducts, as_products
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.torch_functions import TRANSPARENT
from dynopt_ray.structure.tracing.tracer import Heads, Trace
from dynopt_ray.structure.tracing.verification import Verified, Verifier

__all__ = [
    "TRANSPARENT",
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
    "empty_caches",
    "named_tensors",
    "on_device",
    "output_tensors",
    "placeholder_tensors",
    "record_calls",
    "rule",
    "run",
    "tensors_in",
    "trace_at_own_sizes",
    "uncompiled",
    "undisturbed",
    "unknown",
]
