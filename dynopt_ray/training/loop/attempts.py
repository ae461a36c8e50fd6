"""The one loop everything shares: snapshot, edit, recover, judge, keep or roll back."""

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
    """What became of a plan.

    Attributes:
        kept: whether the network is in its new state; if not, it is bit for bit as before.
        before: what the judge said before.
        after: what the judge said of the new state, kept or not.
        receipt: that of the plan; None if it was rolled back or there was no plan.
        recovered: what `recover` returned; None without it.
        duration_s: seconds that all of it took.
    """

    kept: bool
    before: Judged
    after: Judged
    receipt: Receipt | None
    recovered: Recovered | None
    duration_s: float


@contextmanager
def in_round(number: int, num_rounds: int) -> Iterator[None]:
    """Says of a loss that diverges in which round that was."""
    try:
        yield
    except DivergedError as error:
        error.add_note(f"This was in round {number} of {num_rounds}, which was undone.")
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
    """Apply a plan, let the network recover, judge it, and keep it or go back.

    Whatever fails on the way (the plan is refused, the loss diverges, the user interrupts) is
    raised with the network back in its old state: weights, buffers, widths, masks, optimizer and
    random state, bit for bit.

    Args:
        graph: the traced network.
        plan: the edits; an empty plan only recovers, e.g. retrains on approval.
        judge: looks at the network as it is; it must not change it.
        accept: (verdict before, verdict after) -> whether to keep the new state.
        before: the verdict on the present state, if it is known already.
        recover: what follows the edits, e.g. retraining.
        optimizer: follows the plan and is rolled back with the network.
        compensate: see `Graph.apply`.
        generators: the caller's own random state, rolled back too.
        seed: what new units are drawn from; see `Graph.apply`.

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
    """Takes back what is applied within it; the next new units are drawn as if nothing had been."""
    num_receipts, num_edits = len(graph.receipts), graph.num_edits
    try:
        yield
    finally:
        while len(graph.receipts) > num_receipts:
            graph.receipts[-1].undo()
        graph.num_edits = num_edits
