"""Sizes that a forward pass computes with: scales, limits, and the causes that refusals name."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import Grow, trace

Split = Literal["fused", "by head size", "by heads"]
SPLITS: Sequence[Split] = ("fused", "by head size", "by heads")


class Attention(nn.Module):
    """Attention that computes its scale from the size of a head, in several ways."""

    def __init__(self, scale: str, split: Split) -> None:
        super().__init__()
        self.scale, self.split, self.heads, self.head_size, self.size = scale, split, 4, 6, 24
        self.first, self.qkv = nn.Linear(6, 24), nn.Linear(24, 72)
        self.parts = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        self.out, self.last = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, tokens, _ = x.shape
        size = -1
        if self.split == "fused":
            qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_size)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
        else:
            sizes = (-1, self.head_size)
            if self.split == "by heads":
                sizes, size = (self.heads, self.size // self.heads), self.size
            query, key, value = (
                part(x).view(batch, tokens, *sizes).transpose(1, 2) for part in self.parts
            )
        scores = query @ key.transpose(-1, -2) * SCALES[self.scale](self, query)
        x = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, size)
        y: Tensor = self.last(self.out(x))
        return y


SCALES: dict[str, Callable[[Attention, Tensor], Any]] = {
    "power": lambda m, _: m.head_size**-0.5,
    "square root": lambda m, _: 1 / math.sqrt(m.head_size),
    "reciprocal": lambda m, _: 1 / m.head_size**0.5,
    "tensor": lambda m, _: torch.tensor(m.head_size).float().rsqrt(),
    "shape": lambda _, query: query.shape[-1] ** -0.5,
    "size": lambda m, _: m.size**-0.5,
    "quotient": lambda m, _: (m.size // m.heads) ** -0.5,
    "another quotient": lambda m, _: (m.first.out_features // m.heads) ** -0.5,
    "true quotient": lambda m, _: 1 / math.sqrt(m.size / m.heads),
}


@pytest.mark.filterwarnings("ignore:these inputs did not reach")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SCALES)
def test_another_head_does_not_change_a_scale(name: str, split: Split) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    graph = trace(model := Attention(name, split).eval(), x)
    group = next(g for g in graph if g.width == 4)
    before = model(x)
    another = name == "another quotient" and split == "by heads"
    if another or ("quotient" in name and split == "fused"):  # only the number of heads changes
        assert "computes with heads" in group.why_inexact
        return
    if name == "size" and split == "by heads":  # the size changes too
        assert "computes with size" in group.why_inexact
        return
    assert group.exact_growth, group.why_inexact
    graph.apply(Grow(group.name, units=1))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


class Compared(nn.Module):
    """Refuses widths above a limit, or changes what it does there."""

    def __init__(self, limit: int, *, raises: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.limit, self.raises = limit, raises

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.shape[-1] > self.limit and self.raises:
            raise ValueError("too wide")
        y: Tensor = self.last(x.relu() if x.shape[-1] > self.limit else x)
        return y


@pytest.mark.parametrize("raises", [False, True])
def test_a_limit_far_above_does_not_make_growth_inexact(raises: bool) -> None:
    x = torch.randn(4, 5)
    graph = trace(model := Compared(9, raises=raises), x)
    assert graph["first"].exact_growth
    before = model(x)
    message = "ValueError: too wide" if raises else "would change the output"
    with pytest.raises(ValueError, match=message):
        graph.apply(Grow("first", units=6))
    graph.apply(Grow("first", units=2))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


CAUSES: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "layer norm": (lambda _, h: F.layer_norm(h, h.shape[-1:]), "`layer_norm` depends on their"),
    "mean": (lambda _, h: h - h.mean(-1, keepdim=True), "`mean` depends on their number"),
    "product": (
        lambda _, h: (h @ h.mT).softmax(-1) @ h,
        "`matmul` sums over them, and no parameter weights them",
    ),
    "buffer": (
        lambda m, h: h * (h @ m.get_buffer("fixed")).sum(-1, keepdim=True),
        "weights them by the buffer 'fixed', which cannot learn",
    ),
    "size": (lambda _, h: h / h.shape[-1], "the forward pass computes with their number"),
    "attribute": (lambda m, h: h * m.width, "the forward pass computes with width"),
}


class Caused(nn.Module):
    def __init__(self, operation: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.width = nn.Linear(5, 6), nn.Linear(6, 2), 6
        self.register_buffer("fixed", torch.randn(6, 3))
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).view(len(x), -1, self.width)
        y: Tensor = self.last(self.operation(self, h))
        return y


@pytest.mark.parametrize("name", CAUSES)
def test_a_refused_growth_names_the_cause(name: str) -> None:
    operation, cause = CAUSES[name]
    graph = trace(Caused(operation), torch.randn(4, 3, 5))
    with pytest.raises(ValueError, match=cause):
        graph.apply(Grow("first", units=1))
