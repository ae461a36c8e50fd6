"""One optimizer step after an edit, beside the step of the network that had no such edit.

The references are those of the tests: the network that did not grow, and the whole network whose
removed units, or masked weights, are silent. In double precision.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.structure import Grow, Mask, Shrink, trace
from tests.structure.editing import (
    OPTIMIZERS,
    every_second,
    in_double,
    shrunk_by_hand,
    silence,
    step,
)

Make = Callable[[Sequence[nn.Parameter]], Optimizer]
NETWORK = "vgg"


def optimizer_table() -> Table:
    """The largest relative difference of any weight, per optimizer and edit."""
    table = Table(
        title="One step after an edit against the reference: largest relative difference",
        caption="Adafactor, Muon and SparseAdam step by whole matrices or rows, so they have "
        "references of their own in tests/structure/test_optimizers.py; LBFGS is refused",
    )
    for column in ("optimizer", "after growing", "after shrinking", "after masking"):
        table.add_column(column)
    for name, make in OPTIMIZERS.items():
        differences = [after(make) for after in (grown, shrunk, masked)]
        table.add_row(name, *(f"{difference:.0e}" for difference in differences))
    return table


def grown(make: Make) -> float:
    """The step of the units that were there is the step without new ones."""
    model, inputs, optimizer = trained(make)
    old, old_optimizer = twin(model, optimizer, make)
    graph = trace(model, inputs)
    added = {group.name: (group.width, group.width + 1) for group in graph}
    graph.apply([Grow(group, units=2) for group in added], optimizer=optimizer)
    step(model, inputs, optimizer)
    step(old, inputs, old_optimizer)
    return difference(shrunk_by_hand(model, graph, added), dict(old.named_parameters()))


def shrunk(make: Make) -> float:
    """The step is that of the whole network whose removed units are silent."""
    model, inputs, optimizer = trained(make)
    whole, whole_optimizer = twin(model, optimizer, make)
    graph, full = trace(model, inputs), trace(whole, inputs)
    removed = {group.name: every_second(group.width) for group in graph}
    silence(full, removed)
    graph.apply(
        [Shrink(name, remove=units) for name, units in removed.items()], optimizer=optimizer
    )
    step(model, inputs, optimizer)
    step(whole, inputs, whole_optimizer)
    return difference(dict(model.named_parameters()), shrunk_by_hand(whole, full, removed))


def masked(make: Make) -> float:
    """The step of the other weights is that of the network whose masked weights are zero."""
    model, inputs, optimizer = trained(make)
    keep = {n: torch.rand_like(p) > 0.5 for n, p in model.named_parameters() if p.ndim > 1}
    graph = trace(model, inputs)
    graph.apply([Mask(name, keep=kept) for name, kept in keep.items()], optimizer=optimizer)
    # The mask lies on the live network; a twin without masks starts from the same values.
    whole, whole_optimizer = twin(model, optimizer, make)
    step(model, inputs, optimizer)
    step(whole, inputs, whole_optimizer)
    expected = {n: p * keep[n] if n in keep else p for n, p in whole.named_parameters()}
    return difference(dict(model.named_parameters()), expected)


def trained(make: Make) -> tuple[nn.Module, Tensor, Optimizer]:
    """A network some steps into its training."""
    model, inputs = in_double(NETWORK)
    optimizer = make([*model.parameters()])
    for _ in range(3):
        step(model, inputs, optimizer)
    return model, inputs, optimizer


def twin(model: nn.Module, optimizer: Optimizer, make: Make) -> tuple[nn.Module, Optimizer]:
    """A copy of a network with a copy of its optimizer."""
    other = copy.deepcopy(model)
    other_optimizer = make([*other.parameters()])
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, other_optimizer


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference relative to the largest value of its tensor."""
    with torch.no_grad():
        return max(
            float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
            for name, value in expected.items()
            if value.numel()
        )
