"""Learners that survive the death of their process, with a snapshot and a journal on disk."""

from dynopt_ray.online.durable.directory import drop_journal
from dynopt_ray.online.durable.durable_learner import Ack, BuildLearner, DurableLearner, Event
from dynopt_ray.online.durable.journal import Journal
from dynopt_ray.online.durable.records import Entry, storable, stored_bytes
from dynopt_ray.online.durable.snapshot import load, save

__all__ = [
    "Ack",
    "BuildLearner",
    "DurableLearner",
    "Entry",
    "Event",
    "Journal",
    "drop_journal",
    "load",
    "save",
    "storable",
    "stored_bytes",
]
