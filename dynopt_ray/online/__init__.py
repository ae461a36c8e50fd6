"""Learning on a stream, in one process: predict, then learn, from event one.

Example:
    >>> import torch
    >>> from dynopt_ray.online import Guard, OnlineLearner
    >>> model = torch.nn.Linear(64, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> learner = OnlineLearner(model, optimizer, detector="adwin", reactions="raise_rate")
"""

from dynopt_ray.online.detectors import Detector, Replayed
from dynopt_ray.online.durable import Ack, BuildLearner, DurableLearner, Event
from dynopt_ray.online.evaluation import evaluate
from dynopt_ray.online.events import Quarantine, Rejected
from dynopt_ray.online.guard import Guard, Verdict
from dynopt_ray.online.journal import Entry, Journal
from dynopt_ray.online.learner import LearnResult, OnlineLearner
from dynopt_ray.online.predictor import Predictor
from dynopt_ray.online.reactions import RaiseRate, Reaction, Replay, Widen
from dynopt_ray.online.snapshot import load, save
from dynopt_ray.online.streams import ArrayStream, Drift, RiverStream
from dynopt_ray.training.rates import RateController

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
    "Reaction",
    "Rejected",
    "Replay",
    "Replayed",
    "RiverStream",
    "Verdict",
    "Widen",
    "evaluate",
    "load",
    "save",
]
