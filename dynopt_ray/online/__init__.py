"""Online learning in one process: predict each event of a stream, then learn from it.

Example:
    >>> import torch
    >>> from dynopt_ray.online import Guard, OnlineLearner
    >>> model = torch.nn.Linear(64, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> learner = OnlineLearner(model, optimizer, detector="adwin", reactions="raise_rate")
"""

from dynopt_ray.online.drift import (
    Detector,
    RaiseRate,
    ReactingLearner,
    Reaction,
    Replay,
    Replayed,
    Widen,
)
from dynopt_ray.online.durable import (
    Ack,
    BuildLearner,
    DurableLearner,
    Entry,
    Event,
    Journal,
    drop_journal,
    load,
    save,
    storable,
    stored_bytes,
)
from dynopt_ray.online.learner import (
    Guard,
    LearnResult,
    OnlineLearner,
    Predictor,
    Quarantine,
    Rejected,
    Verdict,
)
from dynopt_ray.online.streams import ArrayStream, Drift, RiverStream, evaluate
from dynopt_ray.training import RateController

__all__ = [
    "Ack",
    "ArrayStream",
    "BuildLearner",
    "Detector",
    "Drift",
    "DurableLearner",
    "Entry",
    "Event",
    "Guard",
    "Journal",
    "LearnResult",
    "OnlineLearner",
    "Predictor",
    "Quarantine",
    "RaiseRate",
    "RateController",
    "ReactingLearner",
    "Reaction",
    "Rejected",
    "Replay",
    "Replayed",
    "RiverStream",
    "Verdict",
    "Widen",
    "drop_journal",
    "evaluate",
    "load",
    "save",
    "storable",
    "stored_bytes",
]
