"""Learners that survive the death of their process, with a snapshot and a journal on disk."""

from dynopt_ray.online.durable.durable_learner import Ack, BuildLearner, DurableLearner, Event
from dynopt_ray.online.durable.journal import Entry, Journal, storable
from dynopt_ray.online.durable.snapshot import load, save

__all__ = [
    "Ack",
    "BuildLearner",
    "DurableLearner",
    "Entry",
    "Event",
    "Journal",
    "load",
    "save",
    "storable",
]
