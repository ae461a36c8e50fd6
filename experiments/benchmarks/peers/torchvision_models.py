"""Resize torchvision's classification models: `[MODEL …]`, prints one JSON object per model.

Every model is traced, each group grown by its step and shrunk back, a unit that nobody reads
removed from each, every group halved, and one training step taken. Changes of the output are
relative to its largest value.
"""

import copy
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, list_models

import torchvision  # isort: skip

from dynopt_ray.structure import Edit, Graph, Grow, Shrink, trace

SIZES = {"inception_v3": 299}
"""Sizes of images other than 224."""


def main() -> None:
    """Check all models, or those named."""
    warnings.filterwarnings("ignore")
    names = sys.argv[1:] or list_models(module=torchvision.models)
    for name in names:
        try:
            result = checked(name)
        except Exception as error:  # one model that fails must not hide the others
            result = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps({"model": name, **result}), flush=True)
        gc.collect()


def checked(name: str) -> dict[str, Any]:
    """Everything that is asked of one model."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = get_model(name, weights=None, **options).eval()
    settled(model)
    size = SIZES.get(name, 224)
    x = torch.randn(2, 3, size, size)
    start = time.perf_counter()
    graph = trace(model, x)
    traced_s = time.perf_counter() - start
    before = output(model, x)
    grown = grown_and_back(graph, lambda: output(model, x), before)
    unread = unread_removed(graph, lambda: output(model, x))
    start = time.perf_counter()
    graph.apply(halves(graph))
    return {
        "groups": len(graph),
        "inexact": sum(not group.exact_growth for group in graph),
        "fixed": len(graph.fixed),
        "trace_s": traced_s,
        "halve_s": time.perf_counter() - start,
        **grown,
        "unread": unread,
        "trains": trains(model, x),
    }


def settled(model: nn.Module) -> None:
    """Random weights that keep activations alive, so that every unit shows in the output."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)  # heads that start at zero
        for key, parameter in module.named_parameters(recurse=False):
            if "layer_scale" in key:
                parameter.data.fill_(0.5)


def output(model: nn.Module, x: Tensor) -> Tensor:
    """What it gives in evaluation mode."""
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def change(now: Tensor, before: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((now - before).abs().max() / before.abs().max())


def grown_and_back(graph: Graph, run: Callable[[], Tensor], before: Tensor) -> dict[str, Any]:
    """Grow every group that can grow exactly by its step; shrink it back."""
    state = copy.deepcopy(graph.model.state_dict())
    widths = graph.widths
    exact = [group for group in graph if group.exact_growth]
    graph.apply([Grow(group.name, units=group.step) for group in exact])
    grown = change(run(), before)
    graph.apply([Shrink(g.name, keep=range(widths[g.name])) for g in exact])
    same = all(torch.equal(value, state[key]) for key, value in graph.model.state_dict().items())
    graph.commit()
    return {"grow": grown, "back": change(run(), before), "same_state": same}


def unread_removed(graph: Graph, run: Callable[[], Tensor]) -> float:
    """Zero what reads one unit of each group, then remove these units."""
    state = copy.deepcopy(graph.model.state_dict())
    tensors = graph.tensors()
    plan: list[Edit] = []
    with torch.no_grad():
        for group in graph:
            readers = [s for s in group.slices if s.role == "in"]
            if group.exact_growth and readers and group.width > 1:
                unit = group.width // 2
                for s in readers:
                    tensors[s.parameter].index_fill_(s.dim, s.positions[unit], 0.0)
                plan.append(Shrink(group.name, remove=[unit]))
    silent = run()
    graph.apply(plan)
    result = change(run(), silent)
    graph.receipts[-1].undo()
    graph.model.load_state_dict(state)
    return result


def halves(graph: Graph) -> list[Edit]:
    """Half of every group."""
    return [Shrink(g.name, remove=range(g.width // 2)) for g in graph if g.width > 1]


def trains(model: nn.Module, x: Tensor) -> bool:
    """Whether one training step goes through and changes the output."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    out = model(x)
    sum(value.square().mean() for value in (out if isinstance(out, tuple) else (out,))).backward()
    optimizer.step()
    return all(bool(p.isfinite().all()) for p in model.parameters())


if __name__ == "__main__":
    main()
