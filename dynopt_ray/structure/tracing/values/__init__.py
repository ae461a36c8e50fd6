"""The values that a forward pass reads: where, what for, and what depends on them."""

from dynopt_ray.structure.tracing.values.code_places import CodePlace, ValueUse, place_of_error
from dynopt_ray.structure.tracing.values.data_flow import DataFlow
from dynopt_ray.structure.tracing.values.value_reads import (
    LEAVES,
    READS,
    OtherWayError,
    ValueReads,
)

__all__ = [
    "LEAVES",
    "READS",
    "CodePlace",
    "DataFlow",
    "OtherWayError",
    "ValueReads",
    "ValueUse",
    "place_of_error",
]
