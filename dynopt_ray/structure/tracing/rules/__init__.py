"""How unit ids flow through each operation: importing this package fills `registry.RULES`.

A rule is one function in one of these files. It receives the trace, the operation's output and
the operation's own arguments, ties the ids that must be equal and labels the output.
"""

from dynopt_ray.structure.tracing.rules import (
    attention,
    convolution,
    elementwise,
    linear,
    losses,
    normalisation,
    recurrent,
    reduction,
    selection,
    shape,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "linear",
    "losses",
    "normalisation",
    "recurrent",
    "reduction",
    "selection",
    "shape",
]
