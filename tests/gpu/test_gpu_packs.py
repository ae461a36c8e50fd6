"""Packs are trained on the GPU that their trials hold."""

from dataclasses import replace
from typing import Any

import pytest

from dynopt_ray.cluster import PruneTrial
from dynopt_ray.cluster.trials import TrialWorker, WorkerConfig
from dynopt_ray.cluster.trials.messages import ContinueTrial, StartTrial, TrialMeasured
from tests.cluster.packed import digits, trained

CONFIGS: list[dict[str, Any]] = [
    {"remove_fraction": 0.5, "lr": {"name": "cosine", "initial": 0.01}},
    {"remove_fraction": 0.3, "granularity": "weight", "lr": 0.02, "seed": 1},
    {"remove_fraction": 0.6, "lr": 0.005},
]


def measured(trial: PruneTrial) -> list[TrialMeasured]:
    """Run a pack up to the second measurement of each member."""
    worker = TrialWorker(trial, WorkerConfig(cost_weight=0.1, together=True))
    events = worker.advance([StartTrial(number, config) for number, config in enumerate(CONFIGS)])
    assert all(isinstance(event, TrialMeasured) for event in events), events
    events = worker.advance([ContinueTrial(number) for number in range(len(CONFIGS))])
    found = [event for event in events if isinstance(event, TrialMeasured)]
    assert len(found) == len(CONFIGS), events
    return found


@pytest.mark.usefixtures("gpu")
def test_packs_on_a_gpu_learn_what_they_learn_on_a_cpu() -> None:
    task = digits()
    trial = PruneTrial(task, trained(task), retrain_steps=12, num_reports=3)
    on_gpu, on_cpu = (measured(replace(trial, device=device)) for device in ("cuda", "cpu"))
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert ours.row["validation_loss"] == pytest.approx(theirs.row["validation_loss"], abs=1e-3)
        assert ours.row["params"] == theirs.row["params"]
