"""Compare one optimizer step after an edit with the same step of a network without the edit.

The reference networks are those of the tests: the network that did not grow, and the whole network
whose removed units or masked weights have no effect. All computations are in double precision.
"""

from collections.abc import Mapping

import torch
from rich.table import Table
from torch import Tensor

from dynopt_ray.structure import Mask, trace
from tests.structure.editing import (
    OPTIMIZERS,
    Make,
    after_growth,
    after_shrinking,
    in_training,
    step,
    twin,
)

NETWORK = "vgg"


def optimizer_table() -> Table:
    """Return the table of the largest relative difference of a weight, per optimizer and edit."""
    table = Table(
        title="One step after an edit and of the reference: largest relative difference",
        caption="Adafactor, Muon and SparseAdam compute steps from whole matrices or rows, so they "
        "have their own references in tests/structure/test_optimizers.py; LBFGS is refused",
    )
    for column in ("optimizer", "after growing", "after shrinking", "after masking"):
        table.add_column(column)
    for name, make in OPTIMIZERS.items():
        pairs = (after_growth(NETWORK, make), after_shrinking(NETWORK, make, 1), masked(make))
        table.add_row(name, *(f"{difference(*pair):.0e}" for pair in pairs))
    return table


def masked(make: Make) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights after a step of a masked network, and what they should be.

    The reference takes the same step without masks, and its masked weights are zeroed afterwards.
    """
    model, inputs, optimizer = in_training(NETWORK, make)
    keep = {n: torch.rand_like(p) > 0.5 for n, p in model.named_parameters() if p.ndim > 1}
    graph = trace(model, inputs)
    graph.apply([Mask(name, keep=kept) for name, kept in keep.items()], optimizer=optimizer)
    # The masks belong to the live network. Its twin has the same values but no masks.
    whole, whole_optimizer = twin(model, optimizer, make)
    step(model, inputs, optimizer)
    step(whole, inputs, whole_optimizer)
    expected = {n: p * keep[n] if n in keep else p for n, p in whole.named_parameters()}
    return dict(model.named_parameters()), expected


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of a value, relative to the largest value of its tensor."""
    with torch.no_grad():
        return max(
            float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
            for name, value in expected.items()
            if value.numel()
        )
