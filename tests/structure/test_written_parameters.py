"""Networks whose forward pass changes parameters, or differentiates: nothing moves, all run."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.criteria import mean_gradients, sample_gradients
from dynopt_ray.structure import Graph, Grow, Mask, Shrink, measure, trace
from tests.structure.editing import assert_same

X = torch.randn(6, 4)


class Momentum(nn.Module):
    """An encoder, and a slow copy of it that every pass moves towards it."""

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.fast, self.slow = (
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6))
            for _ in range(2)
        )
        self.slow.requires_grad_(False)
        self.looks = looks

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for p, q in zip(self.fast.parameters(), self.slow.parameters(), strict=True):
                q.mul_(0.9).add_(p, alpha=0.1)
        if self.looks and x.sum() > 1e9:  # traced with values
            x = -x
        return self.fast(x), self.slow(x)


class Forces(nn.Module):
    """The negative gradient of a learned energy with respect to the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, False))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def _loss(output: Any, targets: Tensor) -> Tensor:
    first, second = output
    loss: Tensor = (first - targets).square().mean() + second.square().mean()
    return loss


BATCH = (X, torch.zeros(6, 6))

USES: dict[str, Callable[[Graph], object]] = {
    "growth": lambda graph: graph.apply(Grow("fast.0", units=1)).undo(),
    "compensation": lambda graph: graph.apply(
        Shrink("fast.0", remove=[0]), compensate=[X, X]
    ).undo(),
    "masks": lambda graph: graph.apply(
        Mask("fast.2.weight", keep=torch.eye(8) > 0), compensate=X
    ).undo(),
    "measuring": lambda graph: measure(graph.model, X, latency=True),
    "gradients": lambda graph: mean_gradients(graph.model, [BATCH], _loss),
    "gradients of samples": lambda graph: [*sample_gradients(graph.model, [BATCH], _loss)],
    "tracing": lambda graph: trace(graph.model, X),
}


@pytest.mark.filterwarnings("ignore:the forward pass decides by values")
@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("use", USES)
def test_no_use_moves_a_momentum_encoder(use: str, looks: bool) -> None:
    model = Momentum(looks=looks)
    graph = trace(model, X)
    before = copy.deepcopy(model.state_dict())
    try:
        USES[use](graph)
    finally:
        assert_same(model.state_dict(), before)


def test_momentum_encoders_grow_exactly() -> None:
    model = Momentum().double()
    expected = copy.deepcopy(model)(X.double())
    trace(model, X.double()).apply(Grow("fast.0", units=2))
    torch.testing.assert_close(model(X.double()), expected)


def test_forces_are_measured_and_differentiated() -> None:
    model = Forces()
    graph = trace(model, X)
    assert measure(model, X).params == graph.cost().params
    loss = nn.functional.mse_loss
    whole = mean_gradients(model, [(X, X)], loss)
    samples = [*sample_gradients(model, [(X, X)], loss)]
    torch.testing.assert_close({n: g.mean(0) for n, g in samples[0].items()}, whole)
    before = model(X)
    graph.apply(Grow("energy.0", units=3))
    torch.testing.assert_close(model(X), before)
