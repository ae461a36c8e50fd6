"""`find_rate`: the learning-rate range test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.criteria import Batch
from dynopt_ray.errors import DivergedError
from dynopt_ray.schedules import to_torch
from dynopt_ray.structure import Graph, buffers_kept, undisturbed
from dynopt_ray.tasks import Task, call_model, check_output, check_scalar
from dynopt_ray.training.arguments import check_follows, check_is_task
from dynopt_ray.training.loop import Snapshot, sample_batches, seeded
from dynopt_ray.training.numbers import positive, whole

if TYPE_CHECKING:
    import pandas as pd

# Relative to the first loss's absolute value, so that losses may be negative.
_BLOWN_UP = 3.0
_LEAST_FALL = 0.01
_FEWEST = 10  # steps
_ROWS = 512  # rows on which every step is judged
_WINDOW = 7  # steps in the moving average


@dataclass(frozen=True, eq=False)
class RateRange:
    """The result of the range test.

    Attributes:
        suggestion: the learning rate at which the loss fell fastest.
        largest: the learning rate with the smallest loss; above it training becomes unstable.
        history: a DataFrame with one row per step: lr, loss (after the step, always on the same
            training rows) and smooth_loss (the mean of the loss over seven steps).
    """

    suggestion: float
    largest: float
    history: "pd.DataFrame"


def find_rate(
    model: nn.Module | Graph,
    task: Task,
    optimizer: Optimizer,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    num_steps: int = 100,
    seed: int = 0,
) -> RateRange:
    """Train at increasing learning rates, one step each, and return which rates work.

    The rate increases by the same factor in every step. The test ends after `num_steps`, or when
    the loss exceeds the smallest loss so far by three times the first loss. The suggestion is the
    rate at which the loss fell fastest per step. The loss is measured after every step on the same
    512 training rows, because losses of different batches differ by more than a trained network
    can still improve. Afterwards, the network and its optimizer are restored.

    Args:
        model: the network (or its graph), in the state from which training will start.
        task: what it learns.
        optimizer: the optimizer over the network's parameters. The rates are those of its first
            group; the other groups keep their ratio to it.
        lowest: the first rate, > 0.
        highest: the last rate, above `lowest`.
        num_steps: number of steps, at least 10.
        seed: seed of dropout, and of the order of rows unless a data loader decides it.

    Raises:
        ValueError: a number is out of range.
        DivergedError: the loss is not finite at the start, or never falls by more than 1 %.
        EditError: all parameters are frozen, or the optimizer trains another network.
        TypeError: an argument has the wrong type.

    References:
        Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
    """
    check_is_task("find_rate", task)
    num_steps = whole("find_rate: num_steps", num_steps, least=_FEWEST)
    lowest, highest = positive("find_rate: lowest", lowest), positive("find_rate: highest", highest)
    if not lowest < highest:
        raise ValueError(
            f"find_rate: rates from {lowest!r} to {highest!r}; the second must be higher"
        )
    model = model.model if isinstance(model, Graph) else model
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"find_rate: optimizer is {optimizer!r:.60}; pass the one that will train")
    check_follows(optimizer, model, trains=True)
    factor = (highest / lowest) ** (1 / (num_steps - 1))
    snapshot = Snapshot(model, optimizer)
    rows: list[dict[str, float]] = []
    try:
        with seeded(model, seed) as generator:
            judged = sample_batches(task, _ROWS, generator)
            start = least = _loss(model, task, judged, seed)
            if not math.isfinite(start):
                raise DivergedError(f"find_rate: the loss is {start} before any step")
            scheduler = to_torch(lambda step: lowest * factor**step, optimizer)
            for _ in range(num_steps):
                lr = float(optimizer.param_groups[0]["lr"])
                task.train_steps(model, optimizer, 1, generator=generator, schedule=scheduler)
                loss = _loss(model, task, judged, seed)
                if not loss <= least + _BLOWN_UP * abs(start):  # NaN, too
                    break
                rows.append({"lr": lr, "loss": loss})
                least = min(least, loss)
    finally:
        snapshot.restore()
    if not start - least > _LEAST_FALL * abs(start):
        raise DivergedError(_never_falls(start, lowest, rows))
    return _read(start, rows)


def _loss(model: nn.Module, task: Task, batches: Sequence[Batch], seed: int) -> float:
    """Return the mean loss of some batches.

    The network is in training mode, because running averages of normalisation layers lag behind the
    weights.
    """
    losses, num_rows = 0.0, 0
    with seeded(model, seed), undisturbed(model, training=True), buffers_kept(model):
        for inputs, targets in batches:
            output = call_model(model, inputs)
            if task.kind is not None:
                check_output(output, targets)
            losses += check_scalar(task.loss(output, targets)).item() * len(targets)
            num_rows += len(targets)
    return losses / num_rows


def _never_falls(start: float, lowest: float, rows: Sequence[Mapping[str, float]]) -> str:
    if not rows:
        return f"find_rate: the loss only rises, even at the rate {lowest:g}; give a smaller lowest"
    return (
        f"find_rate: from {start:.4g} the loss falls by less than {_LEAST_FALL:.0%} at any rate "
        f"from {lowest:g} to {rows[-1]['lr']:g}. Either the network has learned the task already, "
        "or other rates are needed: change lowest and highest"
    )


def _read(start: float, rows: Sequence[Mapping[str, float]]) -> RateRange:
    import pandas as pd

    history = pd.DataFrame(rows)

    def smooth(values: "pd.Series[float]") -> "pd.Series[float]":
        return values.rolling(_WINDOW, center=True, min_periods=1).mean()

    history["smooth_loss"] = smooth(history["loss"])
    least = int(history["loss"].argmin())
    falls = smooth(history["loss"].diff().fillna(history["loss"][0] - start))
    steepest = int(falls[: least + 1].argmin())
    rates = history["lr"]
    return RateRange(float(rates[steepest]), float(rates[least]), history)
