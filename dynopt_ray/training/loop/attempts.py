"""The loop that all edits share: snapshot, apply a plan, recover, judge, keep or roll back."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynopt_ray.errors import DivergedError
from dynopt_ray.structure import Graph, Inputs, Plan, Receipt
from dynopt_ray.training.loop.snapshot import Snapshot

Judged = TypeVar("Judged")
Recovered = TypeVar("Recovered")


@dataclass(frozen=True)
class Attempt(Generic[Judged, Recovered]):
    """The outcome of an attempt to apply a plan.

    Attributes:
        kept: whether the new state was kept. If not, the network is bit for bit as it was before.
        before: the verdict of the judge on the old state.
        after: the verdict of the judge on the new state, kept or not.
        receipt: the receipt of the plan; None if it was rolled back or the plan was empty.
        recovered: what `recover` returned; None without `recover`.
        duration_s: duration of the whole attempt in seconds.
    """

    kept: bool
    before: Judged
    after: Judged
    receipt: Receipt | None
    recovered: Recovered | None
    duration_s: float


@contextmanager
def in_round(number: int, num_rounds: int) -> Iterator[None]:
    """Add the number of the round to a `DivergedError` raised inside this context."""
    try:
        yield
    except DivergedError as error:
        error.add_note(f"The loss diverged in round {number} of {num_rounds}, which was undone.")
        raise


def attempt(
    graph: Graph,
    plan: Plan,
    *,
    judge: Callable[[], Judged],
    accept: Callable[[Judged, Judged], bool],
    before: Judged | None = None,
    recover: Callable[[], Recovered] | None = None,
    optimizer: Optimizer | None = None,
    compensate: Iterable[Inputs] | Tensor | None = None,
    generators: Iterable[torch.Generator] = (),
    seed: int | None = None,
) -> Attempt[Judged, Recovered]:
    """Apply a plan, let the network recover, judge the result, and keep it or roll it back.

    If anything fails on the way (the plan is refused, the loss diverges, the user interrupts), the
    old state is restored bit for bit before the error is raised. The state comprises weights,
    buffers, widths, masks, the optimizer and random states.

    Args:
        graph: the traced network.
        plan: the edits. With an empty plan only `recover` runs, e.g. retraining that is kept only
            if it helps.
        judge: returns a verdict on the present network, which it must not change.
        accept: (verdict before, verdict after) -> whether to keep the new state.
        before: the verdict on the present state. Default: call `judge`.
        recover: called after the edits, e.g. retraining.
        optimizer: follows the plan and is rolled back with the network.
        compensate: see `Graph.apply`.
        generators: the caller's own random generators, which are rolled back too.
        seed: seed of the new units; see `Graph.apply`.

    Example:
        >>> from dynopt_ray.structure import Shrink, trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Linear(4, 1))
        >>> graph = trace(model, torch.zeros(2, 1))
        >>> trial = attempt(
        ...     graph,
        ...     [Shrink("0", remove=[0])],
        ...     judge=lambda: graph.cost().params,
        ...     accept=lambda before, after: after < before / 2,
        ... )
        >>> trial.before, trial.after, trial.kept, graph.widths
        (13, 10, False, {'0': 4})
    """
    start = time.perf_counter()
    if before is None:
        before = judge()
    snapshot = Snapshot(graph, optimizer, generators=generators)
    try:
        receipt = None
        if plan:
            receipt = graph.apply(plan, optimizer=optimizer, compensate=compensate, seed=seed)
        recovered = None if recover is None else recover()
        after = judge()
        kept = accept(before, after)
    except BaseException:
        snapshot.restore()
        raise
    if not kept:
        snapshot.restore()
        receipt = None
    return Attempt(kept, before, after, receipt, recovered, time.perf_counter() - start)


@contextmanager
def undone(graph: Graph) -> Iterator[None]:
    """Undo all plans applied inside this context when it ends.

    The count of edits is restored too, so new units are later drawn as if nothing had been applied.
    """
    num_receipts, num_edits = len(graph.receipts), graph.num_edits
    try:
        yield
    finally:
        while len(graph.receipts) > num_receipts:
            graph.receipts[-1].undo()
        graph.num_edits = num_edits
