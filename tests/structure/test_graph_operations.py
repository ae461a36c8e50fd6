"""Graph networks, point clouds and recommenders: places that an index gives."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import trace
from tests.structure.operations import CHECKS, Case, Operation, Through, fixed_reason

EDGES = torch.tensor([[0, 1, 2, 3, 3, 1], [1, 2, 3, 0, 1, 2]])


def _nodes() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5), EDGES


def _clouds() -> Tensor:
    return torch.randn(4, 7, 5)


def _index(edges: Tensor, like: Tensor) -> Tensor:
    return edges[1][:, None].expand_as(like)


def _scattered(reduce: str) -> Callable[..., Tensor]:
    def operation(_: Through, h: Tensor, edges: Tensor) -> Tensor:
        sent = h[edges[0]]
        index = _index(edges, sent)
        return torch.zeros_like(h).scatter_reduce(0, index, sent, reduce, include_self=False)

    return operation


def _mean_by_count(_: Through, h: Tensor, edges: Tensor) -> Tensor:
    total = h.new_zeros(len(h), h.shape[1]).index_add_(0, edges[1], h.index_select(0, edges[0]))
    return total / torch.bincount(edges[1], minlength=len(h)).clamp(min=1)[:, None]


def _written(kind: str) -> Callable[..., Tensor]:
    def operation(_: Through, h: Tensor, edges: Tensor) -> Tensor:
        start, sent = torch.zeros_like(h), h[edges[0]]
        index = edges[1].view(-1, 1)
        result: Tensor
        if kind == "expand":
            result = start.scatter_add(0, index.expand(-1, h.shape[1]), sent)
        elif kind == "repeat":
            result = start.scatter_add_(0, index.repeat(1, h.size(-1)), sent)
        elif kind == "broadcast_to":
            result = start.scatter(0, index.broadcast_to(sent.shape), sent)
        elif kind == "index_put":
            result = start.index_put((edges[1],), sent, accumulate=True)
        elif kind == "index_reduce":
            result = start.index_reduce(0, edges[1], sent, "amax")
        else:
            result = start.index_copy(0, edges[1], sent)
        return result

    return operation


def _gathered(_: Through, h: Tensor) -> Tensor:
    nearest = torch.tensor([0, 2, 1]).view(1, -1, 1)
    gathered = h.gather(1, nearest.expand(len(h), -1, h.size(-1)))
    return gathered + torch.take_along_dim(h, nearest, 1)


def _segments(_: Through, h: Tensor, edges: Tensor) -> Tensor:
    del edges
    return torch.segment_reduce(h, "mean", lengths=torch.tensor([1, 3]), axis=0)


class GraphAttention(nn.Module):
    """Attention over the edges of a graph, with a softmax over the edges of each node."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.into, self.out = nn.Linear(5, 12), nn.Linear(12, 2)
        self.sent, self.received = (nn.Parameter(torch.randn(1, 3, 4)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.into(x).view(len(x), self.num_heads, -1)
        scores = (h * self.sent).sum(-1)[edges[0]] + (h * self.received).sum(-1)[edges[1]]
        weights = F.leaky_relu(scores).exp()
        total = weights.new_zeros([len(x), *weights.size()[1:]])
        total = total.index_add(0, edges[1], weights).index_select(0, edges[1])
        sent = h[edges[0]] * (weights / total).unsqueeze(-1)
        index = edges[1].view(-1, 1, 1).expand_as(sent)
        received = sent.new_zeros([len(x), *sent.size()[1:]]).scatter_add_(0, index, sent)
        out: Tensor = self.out(F.elu(received.flatten(1)))
        return out


class Bags(nn.Module):
    """Bags of categories beside numbers, and products of all pairs of vectors."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 6, mode=mode)
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.hidden(torch.tanh(self.bag(x)))))
        return out


class Sparse(nn.Module):
    """Two convolutions of a graph, with a sparse adjacency matrix."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 2)
        self.product = product

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.product(adjacency, F.relu(self.a(x)))
        out: Tensor = self.c(self.product(adjacency, F.relu(self.b(h))))
        return out


def _sparse(product: Callable[[Tensor, Tensor], Tensor]) -> Case:
    return Case(
        lambda: Sparse(product),
        lambda: (torch.randn(4, 5), (torch.rand(4, 4) > 0.4).float().to_sparse()),
        {"a": 6, "b": 7},
    )


def _messages(operation: Operation) -> Case:
    return Case(partial(Through, operation), _nodes, {"first": 6})


def _in_bags(mode: str) -> Case:
    return Case(partial(Bags, mode), lambda: torch.randint(9, (3, 4)), {"bag": 6, "hidden": 8})


CASES = {
    **{
        f"scattered by {reduce}": _messages(_scattered(reduce))
        for reduce in ("sum", "mean", "amax", "prod")
    },
    **{
        kind: _messages(_written(kind))
        for kind in ("expand", "repeat", "broadcast_to", "index_put", "index_reduce", "copy")
    },
    "mean by count": _messages(_mean_by_count),
    "segments": _messages(_segments),
    "gathered": Case(lambda: Through(_gathered), _clouds, {"first": 6}),
    "graph attention": Case(GraphAttention, _nodes, {"into": 3}),
    **{f"bags by {mode}": _in_bags(mode) for mode in ("sum", "mean", "max")},
    "sparse mm": _sparse(torch.sparse.mm),
    "spmm": _sparse(torch.spmm),
    "sparse operator": _sparse(torch.matmul),
    "sparse addmm": _sparse(lambda a, x: torch.sparse.addmm(x, a, x, alpha=0.5)),
    "addmm with a sparse factor": _sparse(lambda a, x: torch.addmm(x, a, x)),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*")
@pytest.mark.filterwarnings("ignore:index_reduce.*")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_units_pass_through_places_given_by_an_index(
    name: str, check: Callable[[Case], None]
) -> None:
    check(CASES[name])


def test_a_sparse_matrix_may_be_a_buffer() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sparse = Sparse(torch.sparse.mm)
            self.register_buffer("adjacency", torch.eye(4).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.adjacency, Tensor)
            assert self.adjacency.indices().shape[1] == 4  # which a dense tensor does not have
            out: Tensor = self.sparse(x, self.adjacency)
            return out

    assert trace(Kept(), torch.randn(4, 5)).widths == {"sparse.a": 6, "sparse.b": 7}


_SIX = torch.arange(6).expand(4, 7, 6)

FIXED: dict[str, tuple[Operation, str]] = {
    "index of a plain size": (lambda _, h: h.gather(1, _SIX.to(h.device)), "has no units"),
    "scattered along units": (
        lambda _, h: torch.zeros_like(h).scatter_add(2, _SIX.to(h.device), h),
        "an index chooses places along it",
    ),
    "added along units": (
        lambda _, h: torch.zeros_like(h).index_add(2, _SIX[0, 0].to(h.device), h),
        "an index chooses places along it",
    ),
    "searched": (
        lambda _, h: h + h.masked_select(h > 0).sum(),
        "counted, searched or taken one by one",
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_units_along_an_index_are_fixed(name: str) -> None:
    operation, reason = FIXED[name]
    assert reason in fixed_reason(Through(operation), _clouds(), "first")


def test_an_index_of_other_units_ties_both() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(5, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            places = self.second(x).argmax(1, keepdim=True)
            out: Tensor = self.last(self.first(x).gather(1, places))
            return out

    graph = trace(Both(), _clouds())
    assert set(graph["first"].producers) == {"first", "second"}
