"""Products written in other ways, distances, unpooling, sampling, and other common operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import trace
from tests.structure.operations import CHECKS, Case, Operation, Through, fixed_reason


def _tokens() -> Tensor:
    return torch.randn(4, 7, 5)


def _image() -> Tensor:
    return torch.randn(2, 2, 8, 8)


class PerHead(nn.Module):
    """One weight for each head, read and written by products with dots."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.into = nn.Parameter(torch.randn(6, 3, 4) / 3)
        self.out = nn.Parameter(torch.randn(3, 4, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("...i,ihd->...hd", F.relu(self.first(x)), self.into)
        h = torch.tensordot(F.relu(h), self.out, dims=([-2, -1], [0, 1]))
        out: Tensor = self.last(F.relu(h))
        return out


class TwoInputs(nn.Module):
    """A bilinear layer of two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 4)
        self.both, self.last = nn.Bilinear(6, 4, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.both(self.a(x), self.b(x))))
        return out


class Unpooled(nn.Module):
    """The maxima return to the places that they were taken from (SegNet)."""

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        convolution: Any = getattr(nn, f"Conv{num_dims}d")
        self.into, self.inner = convolution(2, 6, 3, padding=1), convolution(6, 6, 1)
        self.out = convolution(6, 2, 1)
        self.pool: Any = getattr(nn, f"MaxPool{num_dims}d")(2, return_indices=True)
        self.unpool: Any = getattr(nn, f"MaxUnpool{num_dims}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled, places = self.pool(self.into(x))
        out: Tensor = self.out(self.unpool(torch.tanh(self.inner(pooled)), places))
        return out


class Transformer(nn.Module):
    """Channels are sampled at places that another branch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 1)
        self.hidden, self.map = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        theta = self.map(torch.relu(self.hidden(y.mean((2, 3))))).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(y.shape), align_corners=False)
        out: Tensor = self.out(F.grid_sample(y, grid, align_corners=False))
        return out


class Interactions(nn.Module):
    """Products of all pairs of embedded categories and numbers (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))
        self.bag = nn.EmbeddingBag(9, 6, mode="sum")
        self.top = nn.Linear(6 + 1, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(x)
        both = torch.stack([dense, self.bag(categories)], 1)
        products = (both @ both.transpose(1, 2))[:, 0, 1, None]
        out: Tensor = self.head(F.relu(self.top(torch.cat([dense, products], 1))))
        return out


def _read(shape: tuple[int, ...], operation: Operation, num_read: int = 8) -> Case:
    return Case(
        lambda: Through(operation, num_read, weight=torch.randn(shape) / 2),
        _tokens,
        {"first": 6, "weight": 8},
    )


def _kept(operation: Operation, **own: tuple[int, ...]) -> Case:
    def build() -> nn.Module:
        return Through(operation, 6, **{name: torch.randn(shape) for name, shape in own.items()})

    return Case(build, _tokens, {"first": 6})


def _to_centres(operation: Operation) -> Case:
    """The result depends on the number of coordinates, and not on that of the centres."""
    return Case(
        lambda: Through(operation, 9, centres=torch.randn(9, 6)),
        _tokens,
        {"first": 6, "centres": 9},
        {"first"},
    )


def _added_to_zeros(model: Any, h: Tensor) -> Tensor:
    """New zeros get the sizes of units that lie along two dimensions, heads and coordinates."""
    heads = h.view(*h.shape[:2], model.heads, -1)
    return (heads.new_zeros([len(h), *heads.size()[1:]]) + heads).flatten(2)


CASES = {
    "per head": Case(PerHead, _tokens, {"first": 6, "into": 3, "into#2": 4, "out": 6}),
    "tensordot": _read((6, 8), lambda m, h: torch.tensordot(h, m.weight, 1)),
    "tensordot of other dimensions": _read(
        (8, 6), lambda m, h: torch.tensordot(h, m.weight, dims=([2], [1]))
    ),
    "inner": _read((8, 6), lambda m, h: torch.inner(h, m.weight)),
    "dense factors of a sparse product": _read(
        (6, 8), lambda m, h: torch.sparse.mm(h.flatten(0, 1), m.weight).view(4, 7, -1)
    ),
    "einsum of three": _read(
        (8, 6, 6), lambda m, h: torch.einsum("bti,oij,btj->bto", h, m.weight, h)
    ),
    "bilinear": _read((8, 6, 6), lambda m, h: F.bilinear(h, h, m.weight)),
    "addbmm": _read(
        (6, 8),
        lambda m, h: torch.addbmm(
            torch.zeros(7, m.weight.shape[1], device=h.device), h, m.weight.expand(4, -1, -1)
        ),
    ),
    "einsum without a sum": _kept(lambda m, h: torch.einsum("bti,i->bti", h, m.w), w=(6,)),
    "outer": _kept(lambda m, h: h * torch.outer(torch.ones(7, device=h.device), m.w), w=(6,)),
    "product with a vector": Case(
        lambda: Through(lambda m, h: (h @ m.w)[..., None], 1, w=torch.randn(6)),
        _tokens,
        {"first": 6},
    ),
    "diagonal": _kept(lambda m, h: h * torch.diagonal(m.w), w=(6, 6)),
    "chain": Case(
        lambda: Through(
            lambda m, h: torch.linalg.multi_dot([h[0], m.a, m.b]),
            4,
            a=torch.randn(6, 9),
            b=torch.randn(9, 4),
        ),
        _tokens,
        {"first": 6, "a": 9, "b": 4},
    ),
    "kronecker": Case(
        lambda: Through(
            lambda m, h: F.linear(h, torch.kron(m.mix, m.block)),
            8,
            mix=torch.randn(2, 2),
            block=torch.randn(4, 3),
        ),
        _tokens,
        {"first": 3, "block": 4},
    ),
    "weights of two parts": Case(
        lambda: Through(
            lambda m, h: F.linear(h, torch.cat([m.one, m.other])),
            8,
            one=torch.randn(4, 6),
            other=torch.randn(4, 6),
        ),
        _tokens,
        {"first": 6, "one": 4, "other": 4},
    ),
    "two inputs": Case(TwoInputs, _tokens, {"a": 6, "b": 4, "both": 7}),
    "distances": _to_centres(lambda m, h: torch.cdist(h, m.centres)),
    "similarities": _to_centres(lambda m, h: F.cosine_similarity(h[:, :, None], m.centres, dim=-1)),
    "unpooled along a line": Case(lambda: Unpooled(1), lambda: torch.randn(2, 2, 8), {"into": 6}),
    "unpooled over a plane": Case(lambda: Unpooled(2), _image, {"into": 6}),
    "unpooled over a volume": Case(
        lambda: Unpooled(3), lambda: torch.randn(2, 2, 4, 4, 4), {"into": 6}
    ),
    "sampled": Case(Transformer, _image, {"into": 6, "hidden": 4}),
    "interactions": Case(
        Interactions,
        lambda: (torch.randn(4, 5), torch.randint(9, (4, 3))),
        {"bottom.0": 8, "bottom.2": 6, "top": 8},
        {"bottom.2"},
    ),
    "sampled categories": _kept(
        lambda _, h: h * F.gumbel_softmax(torch.zeros(2, device=h.device), hard=True).sum()
    ),
    "stacked by rows": _kept(lambda _, h: torch.vstack([h, h.tanh()])),
    "elementwise": _kept(lambda _, h: torch.special.expit(h) + torch.asinh(h).sin_()),
    "ranks": _kept(lambda _, h: h.quantile(torch.tensor([0.1, 0.5], device=h.device), dim=1)),
    "running maximum": _kept(lambda _, h: h.cummax(1).values),
    "sizes of two dimensions": Case(
        lambda: Through(_added_to_zeros, heads=3), _tokens, {"first": 3}
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_units_pass_through_products(name: str, check: Callable[[Case], None]) -> None:
    check(CASES[name])


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda m, h: h @ torch.matrix_exp(m.square), "linear algebra"),
        (lambda _, h: h + h.diff(dim=-1).sum(), "neighbouring coordinates"),
        (lambda _, h: h + h.msort().flip(0) + h.rot90(1, (0, 2)).sum(), "another order"),
        (lambda _, h: h + torch.bucketize(0.5, h[0, 0].sort().values), "another order"),
        (lambda _, h: h + torch.histc(h, 4).sum(), "counted, searched or taken one by one"),
    ],
)
def test_never_guesses(operation: Operation, reason: str) -> None:
    model = Through(operation, square=torch.randn(6, 6))
    assert reason in fixed_reason(model, _tokens(), "first")


def test_functions_of_torch_that_take_the_table_or_the_scale_first() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(9, 6))
            self.into = nn.Linear(6, 6, bias=False)
            self.scale, self.shift = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(6))
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.into(torch.embedding(self.table, x).mean(1))
            mean, var = torch.zeros_like(self.scale), torch.ones_like(self.scale)
            h = torch.batch_norm(*(h, self.scale, self.shift, mean, var), False, 0.1, 1e-5, False)
            out: Tensor = self.last(h)
            return out

    graph = trace(Plain(), torch.randint(9, (4, 3)))
    assert graph.widths == {"table": 6, "into": 6}
    assert graph.consumers["into.weight"][0].mean is None  # not the scale
