"""The cut network in the layout of the whole one, and what the estimates at it are worth."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dynopt_ray.criteria import mean_gradients
from dynopt_ray.structure import Graph, Mask, trace
from dynopt_ray.structure.tracing.forward import named_tensors
from dynopt_ray.training import Costs
from dynopt_ray.training.pruning.units import UnitPool, unit_pool
from dynopt_ray.training.pruning.weights import weight_pool


class Branches(nn.Module):
    """Convolutions with a residual connection, attention with heads, a flattened channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(6, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, padding=1),
        )
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.out = nn.Linear(8, 4)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.block(x)).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, 2).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = ((q @ k.transpose(2, 3)).softmax(3) @ v).transpose(1, 2).flatten(2)
        y: Tensor = self.head(self.out(x).relu().flatten(1))
        return y


X = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def network() -> Graph:
    torch.manual_seed(1)
    model = Branches()
    model(X)  # running statistics that are not those of a fresh network
    return trace(model.eval(), X[:2])


def pool_of(graph: Graph, seed: int = 0) -> UnitPool:
    generator = torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.width, generator=generator) for group in graph}
    costs = Costs(graph, X[:2])
    return unit_pool(graph, costs, scores, "layer", start_widths=graph.widths, min_widths={})


def copies(graph: Graph) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(graph.model).items()}


@pytest.mark.parametrize("compensate", [None, X])
def test_the_embedded_network_computes_what_the_cut_one_does(compensate: Tensor | None) -> None:
    graph = network()
    assert len(graph.groups) >= 4
    pool = pool_of(graph)
    removed = pool.candidates.first(len(pool.candidates) // 2)
    held = copies(graph)
    receipt = graph.apply(pool.plan(removed), compensate=compensate)
    cut, expected = copies(graph), graph.model(X).detach()
    receipt.undo()
    embedded = pool.embedded(removed, held, cut)
    assert all(embedded[name].shape == held[name].shape for name in held)
    output = functional_call(graph.model, embedded, (X,))
    assert torch.allclose(output, expected, atol=1e-5)
    assert not torch.allclose(graph.model(X), expected, atol=1e-3)


def masked_network() -> Graph:
    graph = network()
    torch.manual_seed(3)
    parameters = dict(graph.model.named_parameters())
    graph.apply([Mask(n, keep=torch.rand(p.shape) > 0.7) for n, p in parameters.items()])
    with torch.no_grad():
        parameters["head.weight"][:, ::3] = 0  # zeros that no mask holds
    return graph


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_what_stays_non_zero_is_counted_before_it_is_cut(share: float) -> None:
    graph = masked_network()
    pool = pool_of(graph)
    removed = pool.candidates.first(int(share * len(pool.candidates)))
    predicted = pool.cost(removed, ["nonzero", "params"])
    if removed.any():
        graph.apply(pool.plan(removed))
    now = pool.costs.now()
    assert predicted == {"nonzero": now.nonzero, "params": now.params}
    assert now.nonzero < now.params / 2


def test_gains_are_the_slope_of_the_loss_as_a_unit_returns() -> None:
    graph = network()
    pool = pool_of(graph)
    removed = pool.candidates.first(4)
    held = copies(graph)
    receipt = graph.apply(pool.plan(removed))
    cut = copies(graph)
    receipt.undo()
    embedded = pool.embedded(removed, held, cut)
    gradients = mean_gradients(graph.model, [(X, Y)], F.cross_entropy, tensors=embedded)
    gains = pool.gains(gradients, held)
    assert gains.shape == (len(pool.candidates),)
    for item in removed.nonzero()[:, 0].tolist():
        group = graph[pool.candidates.names[int(pool.candidates.owner[item])]]
        unit = int(pool.candidates.index[item])
        share = 1e-3
        partly = {name: tensor.double() for name, tensor in embedded.items()}
        losses = []
        for returned in (0.0, share):
            for s in group.slices:
                if s.role == "in":
                    at = s.positions[unit]
                    old = held[s.parameter].double().index_select(s.dim, at)
                    partly[s.parameter] = partly[s.parameter].index_copy(s.dim, at, returned * old)
            output = functional_call(graph.model, partly, (X.double(),))
            losses.append(F.cross_entropy(output, Y).item())
        slope = (losses[0] - losses[1]) / share
        assert gains[item].item() == pytest.approx(slope, rel=0.02, abs=1e-5)


def test_gains_of_weights_are_their_slopes() -> None:
    graph = network()
    held = copies(graph)
    scores = {name: p.detach().abs() for name, p in graph.model.named_parameters() if p.dim() > 1}
    pool = weight_pool(graph, Costs(graph, X[:2]).now(), scores, "global")
    gradients = {name: torch.full_like(value, 2.0) for name, value in held.items()}
    expected = torch.cat([-2 * held[name].flatten() for name in scores])
    assert torch.equal(pool.gains(gradients, held), expected)


def test_a_second_round_counts_what_went_in_the_first() -> None:
    graph = network()
    start = graph.widths
    pool = pool_of(graph)
    graph.apply(pool.plan(pool.candidates.first(5)))
    scores = {group.name: torch.rand(group.width) for group in graph}
    again = unit_pool(
        graph, Costs(graph, X[:2]), scores, "layer", start_widths=start, min_widths={}
    )
    assert again.candidates.num_gone == 5
    assert len(again.candidates) == len(pool.candidates) - 5
    assert float(again.candidates.ranked.max()) == 1.0
