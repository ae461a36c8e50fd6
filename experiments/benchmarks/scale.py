"""Trace and resize large networks without data, and print one JSON object.

Arguments: `groups NUMBER` or `llama`. It runs in its own process, so that the peak memory is that
of tracing and planning.
"""

import json
import resource
import sys
import time
from typing import Any

import torch
from torch import nn

from dynopt_ray.structure import Shrink, trace
from experiments.benchmarks.llama import Llama


def main() -> None:
    """Trace and plan, and print the time and memory that this took."""
    torch.set_num_threads(1)
    kind, *arguments = sys.argv[1:]
    trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.zeros(2, 4))
    result = llama() if kind == "llama" else groups(int(arguments[0]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**result, "peak_bytes": peak}))


def groups(number: int) -> dict[str, Any]:
    """Trace a chain of layers, each with its own group, and halve every group."""
    layers = [nn.Linear(4, 4) for _ in range(number + 1)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    start = time.perf_counter()
    graph = trace(model, torch.zeros(2, 4))
    traced = time.perf_counter()
    graph.apply([Shrink(group.name, remove=[0, 1]) for group in graph])
    done = time.perf_counter()
    assert len(graph) == number
    return {"trace_s": traced - start, "halve_s": done - traced}


def llama() -> dict[str, Any]:
    """Trace seven billion parameters, predict the cost after halving every width, and halve."""
    with torch.device("meta"):
        model = Llama()
    tokens = torch.zeros(1, 128, dtype=torch.long, device="meta")
    start = time.perf_counter()
    graph = trace(model, tokens)
    traced = time.perf_counter()
    before = graph.cost()
    halves = {group.name: group.width // 2 for group in graph}
    after = graph.cost(halves)
    planned = time.perf_counter()
    graph.apply([Shrink(name, keep=range(width)) for name, width in halves.items()])
    done = time.perf_counter()
    assert graph.cost() == after
    return {
        "groups": len(graph),
        "fixed": len(graph.fixed),
        "trace_s": traced - start,
        "plan_s": planned - traced,
        "halve_s": done - planned,
        "params": [before.params, after.params],
        "flops": [before.flops, after.flops],
    }


if __name__ == "__main__":
    main()
