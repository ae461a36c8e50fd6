"""The shared edit loop and its parts: snapshots, measurements, sampling and seeding."""

from dynopt_ray.training.loop.attempts import Attempt, attempt, in_round, undone
from dynopt_ray.training.loop.costs_and_metrics import CostAndMetrics, Costs, cost_and_metrics
from dynopt_ray.training.loop.plain_state import (
    check_optimizer_state,
    copied,
    load_optimizer_state,
    optimizer_state,
)
from dynopt_ray.training.loop.rows import history_table, row
from dynopt_ray.training.loop.sampling import SCORE_ROWS, calibration_inputs, sample_batches
from dynopt_ray.training.loop.seeding import RandomStream, seeded
from dynopt_ray.training.loop.snapshot import KeptOptions, Snapshot
from dynopt_ray.training.loop.stored_networks import loaded_network, network_bytes, restored, traced

__all__ = [
    "SCORE_ROWS",
    "Attempt",
    "CostAndMetrics",
    "Costs",
    "KeptOptions",
    "RandomStream",
    "Snapshot",
    "attempt",
    "calibration_inputs",
    "check_optimizer_state",
    "copied",
    "cost_and_metrics",
    "history_table",
    "in_round",
    "load_optimizer_state",
    "loaded_network",
    "network_bytes",
    "optimizer_state",
    "restored",
    "row",
    "sample_batches",
    "seeded",
    "traced",
    "undone",
]
