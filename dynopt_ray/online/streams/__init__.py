"""Streams of events, and prequential evaluation on them."""

from dynopt_ray.online.streams.evaluation import evaluate
from dynopt_ray.online.streams.event_streams import ArrayStream, Drift, RiverStream

__all__ = [
    "ArrayStream",
    "Drift",
    "RiverStream",
    "evaluate",
]
