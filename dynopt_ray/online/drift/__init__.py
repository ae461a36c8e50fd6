"""Drift of a stream: drift detectors, and reactions to drift."""

from dynopt_ray.online.drift.detectors import Detector, Replayed, build_detector
from dynopt_ray.online.drift.raise_rate import RaiseRate
from dynopt_ray.online.drift.reaction import ReactingLearner, Reaction, build_reactions
from dynopt_ray.online.drift.replay import Replay
from dynopt_ray.online.drift.widen import Widen

__all__ = [
    "Detector",
    "RaiseRate",
    "ReactingLearner",
    "Reaction",
    "Replay",
    "Replayed",
    "Widen",
    "build_detector",
    "build_reactions",
]
