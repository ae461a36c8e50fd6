"""Measure tracing a torchvision model and halving every width, and print one JSON object.

Arguments: `LIBRARY MODEL RUNS`. A process measures one library and one model, so that time and
memory of one are not counted as those of another. With 0 runs, the process only tests whether the
model can be halved and then trains.
"""

import copy
import ctypes
import gc
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.structure import trace
from experiments.benchmarks.peers.checks import halves, num_parameters, trains
from experiments.benchmarks.peers.torchvision_models import built

MOST_BYTES = 10 * 2**30
"""Memory limit of the process: Torch-Pruning would use up the memory of any machine on Swin."""

Halve = Callable[[nn.Module, Tensor], None]


def main() -> None:
    """Resize one model, and print the time and memory that this took."""
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    torch.set_num_threads(1)
    library, name, runs = sys.argv[1:]
    model, images = built(name)
    assert isinstance(images, Tensor)
    model, x = model.eval(), images[:1]
    tried = attempt(LIBRARIES[library], model, x)
    number = int(runs) if tried["works"] else 0
    timed = [measured(LIBRARIES[library], model, x) for _ in range(number)]
    forward = [measured(forward_only, model, x)["memory"] for _ in range(number)]
    print(json.dumps({**tried, "runs": timed, "forward_memory": forward}))


def attempt(halve: Halve, model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Test whether a copy can be halved and then trains.

    This also imports modules that are imported at first use, before times are measured.
    """
    model = copy.deepcopy(model)
    before = num_parameters(model)
    try:
        halve(model, x)
        assert trains(model, torch.cat([x, x])), "an output or a parameter is not finite"
    except Exception as error:
        return {"works": False, "error": f"{type(error).__name__}: {error}"[:200]}
    return {"works": True, "left": num_parameters(model) / before}


def measured(halve: Halve, model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return seconds, and peak memory (including the model) relative to the model's size."""
    model = copy.deepcopy(model)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    start = time.perf_counter()
    halve(model, x)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory": 1 + (resident("VmHWM") - before) / size}


def dynopt_ray(model: nn.Module, x: Tensor) -> None:
    """Halve with dynopt_ray. The widths of the network's outputs are fixed by default."""
    graph = trace(model, x)
    graph.apply(halves(graph))


def torch_pruning(model: nn.Module, x: Tensor) -> None:
    """Halve with Torch-Pruning, as in its examples."""
    import torch_pruning as tp

    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=heads(model),
        num_heads={module: module.num_heads for module in attention},
    )
    pruner.step()


def heads(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose outputs are the model's 1000 classes."""
    sizes = {"out_features", "out_channels"}
    return [m for m in model.modules() if any(getattr(m, size, None) == 1000 for size in sizes)]


def forward_only(model: nn.Module, x: Tensor) -> None:
    """Run one forward pass, whose memory every user of the model has."""
    with torch.no_grad():
        model(x)


LIBRARIES: dict[str, Halve] = {"dynopt_ray": dynopt_ray, "torch_pruning": torch_pruning}


def resident(field: str) -> int:
    """Return a memory field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
