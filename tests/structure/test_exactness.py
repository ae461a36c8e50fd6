"""Where growth says that it is exact, it is; where it cannot be, it says so."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Grow, trace


class Network(nn.Module):
    """Two linear layers whose units meet in a function of the test's own."""

    def __init__(self, meet: Callable[["Network", Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(7, 6), nn.Linear(7, 6)
        self.gain = nn.Parameter(torch.rand(6) + 0.5)
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.table = nn.Embedding(4, 6)
        self.meet = meet

    def forward(self, x: Tensor) -> Tensor:
        return self.meet(self, x)


def attention(network: Network, x: Tensor) -> Tensor:
    query, key = network.one(x), network.two(x)
    out: Tensor = (query @ key.transpose(-2, -1)).softmax(-1) @ x
    return out


def own_scale(network: Network, x: Tensor) -> Tensor:
    hidden: Tensor = network.one(x).tanh()
    scale: float = hidden.shape[-1] ** -0.5
    return F.linear(hidden, network.weight) * scale


def towers(network: Network, x: Tensor) -> Tensor:
    rows: Tensor = network.table(torch.tensor([1], device=x.device))
    scores: Tensor = network.one(x).relu() @ network.table.weight.T
    return scores + rows.sum(-1)


def reparametrised(network: Network, x: Tensor) -> Tensor:
    weight = network.weight - network.weight.mean(1, keepdim=True)
    return F.linear(network.one(x).relu(), weight / weight.std(1, keepdim=True))


INEXACT: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "queries times keys": attention,
    "a scale made of the width": own_scale,
    "a table that is also a weight": towers,
    "standardised weights": reparametrised,
    "softmax over units": lambda n, x: F.linear(n.one(x).softmax(-1), n.weight),
    "a positive weight": lambda n, x: F.linear(n.one(x).relu(), n.weight.exp()),
    "mean over units": lambda n, x: n.one(x).relu().mean(-1),
    "distance of units": lambda n, x: (n.one(x) - n.two(x)).norm(dim=-1),
    "instance norm of weights": lambda n, x: F.linear(n.one(x), F.instance_norm(n.weight[None])[0]),
}

EXACT: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "gain on a weight": lambda n, x: F.linear(n.one(x).relu(), n.weight * n.gain),
    "transposed weight": lambda n, x: n.one(x).relu() @ n.weight.T,
    "weight on the left": lambda n, x: (n.weight @ n.one(x).relu().transpose(-2, -1)).sum(-1),
    "product of two": lambda n, x: F.linear(n.one(x) * n.two(x), n.weight),
    "gated by sigmoid": lambda n, x: F.linear(n.one(x) * n.two(x).sigmoid(), n.weight),
    "einsum": lambda n, x: torch.einsum("bth,oh->bto", n.one(x).cos(), n.weight),
    "addmm": lambda n, x: torch.addmm(x[0, :, :5], n.one(x[0]).cos(), n.weight.T),
}


@pytest.mark.parametrize("name", INEXACT)
def test_growth_that_would_show_is_refused(name: str) -> None:
    torch.manual_seed(0)
    network = Network(INEXACT[name])
    inputs = torch.randn(3, 4, 7)
    graph = trace(network, inputs)
    with pytest.raises(EditError, match="change the output"):
        graph.apply([Grow("one", units=2)])
    before = network(inputs)
    graph.apply([Grow("one", units=2, exact=False)])
    assert network(inputs).shape == before.shape
    assert not torch.allclose(network(inputs), before, rtol=1e-3)


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", EXACT)
def test_growth_that_is_allowed_does_not_show(name: str, init: str) -> None:
    torch.manual_seed(0)
    network = Network(EXACT[name]).double()
    inputs = torch.randn(3, 4, 7).double()
    before = network(inputs)
    trace(network, inputs).apply([Grow("one", units=2, init=init)])  # type: ignore[arg-type]
    torch.testing.assert_close(network(inputs), before)
