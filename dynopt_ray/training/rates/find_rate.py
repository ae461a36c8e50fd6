"""`find_rate`: the learning-rate range test."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import DivergedError
from dynopt_ray.schedules import to_torch
from dynopt_ray.tasks import Task
from dynopt_ray.training.arguments import check_task
from dynopt_ray.training.numbers import positive, whole
from dynopt_ray.training.seeding import seeded
from dynopt_ray.training.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd

_SMOOTHING = 0.9
_BLOWN_UP = 4.0
_FEWEST = 10


@dataclass(frozen=True, eq=False)
class RateRange:
    """What the range test found.

    Attributes:
        suggestion: the rate at which the loss fell fastest.
        largest: the rate with the least loss; beyond it training becomes unstable.
        history: a DataFrame with one row per step: lr, loss and smooth_loss.
    """

    suggestion: float
    largest: float
    history: "pd.DataFrame"


def find_rate(
    model: nn.Module,
    task: Task,
    optimizer: Optimizer,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    num_steps: int = 100,
    seed: int = 0,
) -> RateRange:
    """Try rising learning rates, one step each; the network and its optimizer are as before.

    The rate rises by the same factor from step to step until the smoothed loss is four times the
    least one. The suggestion is the rate at which it fell fastest per factor.

    Args:
        model: the network, as training shall start from it.
        task: what it learns.
        optimizer: over its parameters.
        lowest: the first rate, > 0.
        highest: the last one.
        num_steps: steps, at least 10.
        seed: of the order of rows, and of dropout.

    Raises:
        ValueError: a number out of range.
        DivergedError: the loss is not finite at the lowest rate already, or never falls.
        TypeError: no task, or no numbers.

    References:
        Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
    """
    check_task("find_rate", task)
    num_steps = whole("find_rate: num_steps", num_steps, least=_FEWEST)
    lowest, highest = positive("find_rate: lowest", lowest), positive("find_rate: highest", highest)
    if not lowest < highest:
        raise ValueError(f"find_rate: rates from {lowest!r} to {highest!r}; they must rise above 0")
    factor = (highest / lowest) ** (1 / (num_steps - 1))
    rows: list[dict[str, float]] = []
    snapshot = Snapshot(model, optimizer)
    try:
        with seeded(model, seed) as generator:
            scheduler = to_torch(lambda step: lowest * factor**step, optimizer)
            smooth = 0.0
            for step in range(num_steps):
                lr = float(optimizer.param_groups[0]["lr"])
                try:
                    stats = task.train_steps(
                        model, optimizer, 1, generator=generator, schedule=scheduler
                    )
                except DivergedError:
                    if not rows:
                        raise
                    break
                smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * stats.last_loss
                unbiased = smooth / (1 - _SMOOTHING ** (step + 1))
                rows.append({"lr": lr, "loss": stats.last_loss, "smooth_loss": unbiased})
                if unbiased > _BLOWN_UP * min(row["smooth_loss"] for row in rows):
                    break
    finally:
        snapshot.restore()
    return _read(rows)


def _read(rows: list[dict[str, float]]) -> RateRange:
    import pandas as pd

    losses = torch.tensor([row["smooth_loss"] for row in rows], dtype=torch.float64)
    least = int(losses.argmin())
    if not least:
        raise DivergedError(
            f"find_rate: the loss only rises, from the rate {rows[0]['lr']:g} on; begin lower"
        )
    # The first steps are few to average over, and what follows the least loss is no descent.
    slopes = losses[1 : least + 1] - losses[:least]
    steepest = int(slopes.argmin())
    return RateRange(rows[steepest]["lr"], rows[least]["lr"], pd.DataFrame(rows))
