"""Rules for how unit ids flow through operations. Importing them fills `registry.RULES`.

A rule is a function that receives the trace, the operation's output and the operation's own
arguments. It ties ids that must belong to the same unit and labels the output.
"""

from dynopt_ray.structure.tracing.rules import (
    attention,
    concatenation,
    convolution,
    distances,
    elementwise,
    fourier,
    linear,
    losses,
    matrices,
    normalisation,
    ordering,
    padding,
    placement,
    quantisation,
    recurrent,
    reduction,
    selection,
    shape,
)

__all__ = [
    "attention",
    "concatenation",
    "convolution",
    "distances",
    "elementwise",
    "fourier",
    "linear",
    "losses",
    "matrices",
    "normalisation",
    "ordering",
    "padding",
    "placement",
    "quantisation",
    "recurrent",
    "reduction",
    "selection",
    "shape",
]
