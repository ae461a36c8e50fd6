"""What must hold for a network that passes its units through some operation."""

import copy
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.structure import Graph, Grow, Shrink, measure, trace
from dynopt_ray.structure.plans.edits import Init
from dynopt_ray.structure.tracing import tensors_in
from dynopt_ray.structure.tracing.forward import Inputs, run

Operation = Callable[..., Any]

INITS: tuple[Init, ...] = ("fresh", "split")


class Through(nn.Module):
    """A linear layer of 6 units, an operation on them and on parameters, and a linear layer."""

    def __init__(self, operation: Operation, num_read: int = 6, **own: Tensor | int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(num_read, 3)
        for name, value in own.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)
        self.operation = operation

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        out: Tensor = self.last(self.operation(self, self.first(x).relu(), *others))
        return out


@dataclass(frozen=True)
class Case:
    """A network, its inputs, the widths that tracing must find, and those that grow inexactly."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    widths: Mapping[str, int]
    inexact: Collection[str] = field(default=())

    def made(self) -> tuple[nn.Module, Inputs]:
        torch.manual_seed(0)
        return self.build().eval(), self.inputs()


def values(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.clone() for tensor in tensors_in(run(model, inputs))]


def check_widths(case: Case) -> None:
    """The widths are found, and it is known which of them change the output when they grow."""
    graph = trace(*case.made())
    assert graph.widths == dict(case.widths), graph.fixed
    assert {g.name for g in graph if not g.exact_growth} == set(case.inexact)


def check_growth(case: Case) -> None:
    """New units do not change the output, whether they are fresh or copies."""
    for name in case.widths.keys() - set(case.inexact):
        for init in INITS:
            model, inputs = case.made()
            before = values(model, inputs)
            trace(model, inputs).apply(Grow(name, units=2, init=init))
            torch.testing.assert_close(values(model, inputs), before, rtol=1e-4, atol=1e-5)


def check_removal(case: Case) -> None:
    """A unit that nothing reads leaves, and the output does not change."""
    for name in case.widths.keys() - set(case.inexact):
        for unit in (0, 1):
            model, inputs = case.made()
            graph = trace(model, inputs)
            unread(graph, name, unit)
            before = values(model, inputs)
            graph.apply(Shrink(name, remove=[unit]))
            torch.testing.assert_close(values(model, inputs), before, rtol=1e-4, atol=1e-5)


def unread(graph: Graph, name: str, unit: int) -> None:
    """Zero everything that reads a unit."""
    tensors = graph.tensors()
    with torch.no_grad():
        for s in graph[name].slices:
            if s.role == "in":
                tensors[s.parameter].index_fill_(s.dim, s.positions[unit], 0)


def check_costs(case: Case) -> None:
    """Costs computed from widths are those that torch counts, also at other widths."""
    model, inputs = case.made()
    graph = trace(model, inputs)
    assert graph.cost() == measure(model, inputs)
    plan = halved(graph)
    predicted = graph.cost({e.group: len(e.keep or ()) for e in plan})
    graph.apply(plan)
    real = measure(model, inputs)
    assert (predicted.params, predicted.flops, predicted.bytes) == (
        *(real.params, real.flops, real.bytes),
    )


def check_training(case: Case) -> None:
    """A network that lost half of its units, and was compensated, trains with its optimizer."""
    model, inputs = case.made()
    graph = trace(model, inputs)
    optimizer = torch.optim.Adam(model.parameters())
    for plan in (None, halved(graph)):
        if plan is not None:
            with warnings.catch_warnings():
                # What reads the units may be no weight of a linear layer.
                warnings.filterwarnings("ignore", "compensate: .* cannot be refitted")
                graph.apply(plan, optimizer=optimizer, compensate=[inputs])
        optimizer.zero_grad()
        total = sum(t.abs().square().mean() for t in tensors_in(run(model.train(), inputs)))
        assert isinstance(total, Tensor)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(t.isfinite().all() for t in values(model.eval(), inputs))


def halved(graph: Graph) -> list[Shrink]:
    return [Shrink(g.name, keep=range(max(g.width // 2, g.min_width))) for g in graph]


CHECKS = (check_widths, check_growth, check_removal, check_costs, check_training)


def fixed_reason(model: nn.Module, inputs: Inputs, name: str) -> str:
    """The reason for which a width is fixed; the network is not changed by asking."""
    before = copy.deepcopy(model.state_dict())
    reason = trace(model, inputs).fixed[name]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return reason
