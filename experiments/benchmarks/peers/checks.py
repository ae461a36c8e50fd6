"""Check how a network of another library can be resized.

The network is traced. Each group is grown by its step and shrunk back. A unit whose readers are
zero is removed from each group. Every group is halved, one training step is taken, and the result
is saved and loaded. Changes of the output are relative to its largest value.
"""

import copy
import gc
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dynopt_ray.structure import (
    Edit,
    Graph,
    Grow,
    Inputs,
    Shrink,
    history_of,
    load,
    run,
    save,
    trace,
)

Build = Callable[[str], tuple[nn.Module, Inputs]]
"""Makes the network of a name, and inputs for it."""


def print_checked(names: Iterable[str], build: Build) -> None:
    """Check networks, and print one JSON object per line."""
    warnings.filterwarnings("ignore")
    for name in names:
        try:
            torch.manual_seed(0)
            result = checked(*build(name), lambda name=name: build(name)[0])
        except Exception as error:  # one network that fails must not hide the others
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps({"model": name, **result}), flush=True)
        gc.collect()


def checked(model: nn.Module, inputs: Inputs, make: Callable[[], nn.Module]) -> dict[str, Any]:
    """Return the results of all checks of one network; `make` makes another network like it."""
    settle(model.eval())
    start = time.perf_counter()
    graph = trace(model, inputs)
    traced_s = time.perf_counter() - start
    before = outputs(model, inputs)
    grown = grown_and_back(graph, lambda: outputs(model, inputs), before)
    unread = unread_removed(graph, lambda: outputs(model, inputs))
    size = num_parameters(model)
    start = time.perf_counter()
    graph.apply(halves(graph))
    return {
        "groups": len(graph),
        "inexact": sum(not group.exact_growth for group in graph),
        "fixed": len(graph.fixed),
        "reasons": Counter(reason[:100] for reason in graph.fixed.values()),
        "trace_s": round(traced_s, 3),
        "halve_s": round(time.perf_counter() - start, 3),
        "halved": round(num_parameters(model) / size, 3),
        **grown,
        "unread": unread,
        "trains": trains(model, inputs),
        "loaded": loads(model, inputs, make()),
    }


def settle(model: nn.Module) -> None:
    """Add noise to tensors whose values are all equal, so that every unit affects the output.

    Otherwise layer scales and gates would be (nearly) zero, and running statistics would be those
    before any data.
    """
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (
                tensor.is_floating_point()
                and tensor.numel()
                and bool((tensor == tensor.max()).all())
            ):
                noise = torch.randn_like(tensor) / 10
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all floating-point tensors in the output of a network."""
    with torch.no_grad():
        return _numbers(run(model, inputs))


def _numbers(output: Any) -> list[Tensor]:
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    assert tensors, f"no tensors in {type(output).__name__}"
    return tensors


def change(now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return the largest difference in any tensor, relative to the tensor's largest value."""
    return max(
        float((n - b).abs().max() / b.abs().max().clamp(min=1e-12))
        for n, b in zip(now, before, strict=True)
    )


def num_parameters(model: nn.Module) -> int:
    """Return the number of entries of all parameters."""
    return sum(p.numel() for p in model.parameters())


def grown_and_back(
    graph: Graph, give: Callable[[], list[Tensor]], before: list[Tensor]
) -> dict[str, Any]:
    """Grow each group that can grow exactly by its step, shrink it back, and return the changes."""
    state = copy.deepcopy(graph.model.state_dict())
    widths = graph.widths
    exact = [group for group in graph if group.exact_growth]
    if not exact:
        return {}
    graph.apply([Grow(group.name, units=group.step) for group in exact])
    grown = change(give(), before)
    graph.apply([Shrink(g.name, keep=range(widths[g.name])) for g in exact])
    same = all(torch.equal(value, state[key]) for key, value in graph.model.state_dict().items())
    graph.commit()
    return {"grow": grown, "back": change(give(), before), "same_state": same}


def unread_removed(graph: Graph, give: Callable[[], list[Tensor]]) -> float | None:
    """Zero the weights that read one unit of each group, remove the units, return the change."""
    state = copy.deepcopy(graph.model.state_dict())
    tensors = graph.tensors()
    plan: list[Edit] = []
    with torch.no_grad():
        for group in graph:
            readers = [s for s in group.slices if s.role == "in"]
            if group.exact_growth and readers and group.width > group.step == 1:
                unit = group.width // 2
                for s in readers:
                    tensors[s.parameter].index_fill_(s.dim, s.positions[unit], 0.0)
                plan.append(Shrink(group.name, remove=[unit]))
    if not plan:
        return None
    silent = give()
    graph.apply(plan)
    result = change(give(), silent)
    graph.receipts[-1].undo()
    graph.model.load_state_dict(state)
    return result


def halves(graph: Graph) -> list[Edit]:
    """Return a plan that removes half of every group, as nearly as its step allows."""
    gone = {group.name: group.width // 2 // group.step * group.step for group in graph}
    return [Shrink(name, remove=range(units)) for name, units in gone.items() if units]


def loads(model: nn.Module, inputs: Inputs, other: nn.Module) -> bool:
    """Whether a saved network loads with its weights bit for bit, its history, and its output.

    The outputs may differ by rounding.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save(path, model)
        load(path, other)
    state = other.state_dict()
    same = all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    moved = change(outputs(other.eval(), inputs), outputs(model.eval(), inputs))
    return same and moved <= 1e-6 and history_of(other) == history_of(model)


def trains(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the network's output is finite, and its parameters are after one training step."""
    finite = all(bool(t.isfinite().all()) for t in outputs(model, inputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    loss = sum(t.square().mean() for t in _numbers(run(model, inputs)) if t.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    return finite and all(bool(p.isfinite().all()) for p in model.parameters())
