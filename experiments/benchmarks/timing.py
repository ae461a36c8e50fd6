"""Measure latencies on batches. Imports torch only."""

import statistics
import time

import torch
from torch import nn

from dynopt_ray.tasks import Task

BATCH_SIZE = 64
_NUM_RUNS = 30


def latency_ms(model: nn.Module, task: Task) -> float:
    """Return the median time of a forward pass of 64 samples, in milliseconds."""
    x = task.arrays("test")[0][:BATCH_SIZE]
    times = []
    with torch.inference_mode():
        model.eval()
        for _ in range(_NUM_RUNS):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
