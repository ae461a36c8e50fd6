"""Compensation runs a constant number of passes, in which all batches go side by side."""

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import Moments, Shrink, best_ridges, trace
from tests.structure.test_compensate import halve

BATCHES = 3


class Encoder(nn.Module):
    """Attention and two linear layers, each with a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 2
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.unbind(2)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class Towers(nn.Module):
    """The same layers for both halves of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = chain(6, 12, 12, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        y: Tensor = self.head(torch.cat([self.tower(one), self.tower(1 - 2 * other)], 1).relu())
        return y


def chain(*widths: int) -> nn.Sequential:
    layers = [nn.Linear(one, other) for one, other in itertools.pairwise(widths)]
    parts = [part for layer in layers for part in (layer, nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def passes_of(model: nn.Module, act: Callable[[], object]) -> list[int]:
    """How often each module is called."""
    counts = [0] * len(list(model.modules()))
    handles = []
    for number, module in enumerate(model.modules()):

        def count(*_: Any, number: int = number) -> None:
            counts[number] += 1

        handles.append(module.register_forward_pre_hook(count))
    act()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("depth", [6, 12, 24])
@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_two_passes_whatever_the_depth(kind: str, depth: int) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        model = chain(*[8] * (depth + 1))
    else:
        model = nn.Sequential(*(Encoder(8) for _ in range(depth)), nn.Linear(8, 3))
    batches = [torch.randn(16, 4, 8) for _ in range(BATCHES)]
    graph = trace(model.eval(), batches[0])
    plan = halve(graph)
    assert len(plan) >= depth - 1
    counts = passes_of(model, lambda: graph.apply(plan, compensate=batches))
    assert len(graph.receipts[-1].refitted) >= depth - 1
    assert counts[0] == max(counts) == 2 * BATCHES


def test_weights_that_are_used_twice_take_a_third_pass() -> None:
    torch.manual_seed(0)
    model, batches = Towers().eval(), [torch.randn(16, 12) for _ in range(BATCHES)]
    graph = trace(model, batches[0])
    counts = passes_of(model, lambda: graph.apply(halve(graph), compensate=batches))
    assert counts[0] == 3 * BATCHES


def fitted(inputs: Sequence[Tensor], residuals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the regression gives for a linear layer, batch by batch as compensation adds them."""
    halves = [Moments.start(inputs[0][None], residuals[0].shape[1]) for _ in range(2)]
    for x, r in zip(inputs, residuals, strict=True):
        for half, moments in enumerate(halves):
            moments.add(x[None, half::2], r[None, half::2])
    one, other = halves

    def loss(ridges: Tensor) -> Tensor:
        fit = one.fit(intercept=True, ridge=ridges.item())
        return other.losses(*fit)

    slope, constant = one.plus(other).fit(intercept=True, ridge=best_ridges(loss, 1).item())
    return slope[0].float(), constant[0].float()


@torch.no_grad()
def test_each_layer_is_fitted_to_the_original_on_what_the_refitted_ones_give() -> None:
    """Compared with a loop that runs layer by layer, each with all batches."""
    torch.manual_seed(0)
    model = chain(6, 16, 16, 16, 16, 4).eval()
    whole, batches = copy.deepcopy(model), [torch.randn(40, 6) for _ in range(BATCHES)]
    graph = trace(model, batches[0])
    graph.apply([Shrink(group.name, keep=range(8)) for group in graph], compensate=batches)
    wanted = now = batches
    for number in range(0, len(whole), 2):
        old: Any = whole[number]
        wanted, inputs = [old(x) for x in wanted], now
        weight, bias = old.weight[:8, : inputs[0].shape[1]], old.bias[:8]
        if number:
            lacking = [
                y[:, :8] - F.linear(x, weight, bias) for x, y in zip(now, wanted, strict=True)
            ]
            slope, constant = fitted(inputs, lacking)
            weight, bias = weight + slope, bias + constant
        new: Any = model[number]
        torch.testing.assert_close(new.weight, weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(new.bias, bias, rtol=1e-4, atol=1e-5)
        now = [F.linear(x, new.weight, new.bias).relu() for x in now]
        wanted = [y.relu() for y in wanted]


@torch.no_grad()
def test_a_weight_that_is_used_twice_is_fitted_to_both_uses() -> None:
    torch.manual_seed(0)
    model = Towers().eval()
    whole, batches = copy.deepcopy(model), [torch.randn(40, 12) for _ in range(BATCHES)]
    graph = trace(model, batches[0])
    graph.apply(Shrink("tower.0", keep=range(6)), compensate=batches)
    halves = [half for x in batches for half in x.chunk(2, dim=1)]
    inputs = [half if n % 2 == 0 else 1 - 2 * half for n, half in enumerate(halves)]
    # The first uses of all batches are taken into account before the second ones.
    inputs = inputs[::2] + inputs[1::2]
    hidden = [model.tower[:2](x) for x in inputs]
    old: Any = whole.tower[2]
    lacking = [
        whole.tower[:3](x) - F.linear(h, old.weight[:, :6], old.bias)
        for x, h in zip(inputs, hidden, strict=True)
    ]
    slope, constant = fitted(hidden, lacking)
    new: Any = model.tower[2]
    torch.testing.assert_close(new.weight, old.weight[:, :6] + slope, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(new.bias, old.bias + constant, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_follows_a_weight_used_twice_sees_its_last_values() -> None:
    """Its first use in the pass must not keep values from before the last one."""
    torch.manual_seed(0)
    model = Towers().eval()
    whole, batches = copy.deepcopy(model), [torch.randn(40, 12) for _ in range(BATCHES)]
    graph = trace(model, batches[0])
    graph.apply(halve(graph), compensate=batches)

    def head_inputs(net: Towers, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        return torch.cat([net.tower(one), net.tower(1 - 2 * other)], 1).relu()

    kept = torch.cat([torch.arange(4, 8), torch.arange(12, 16)])
    inputs = [head_inputs(model, x) for x in batches]
    weight = whole.head.weight[:, kept]
    lacking = [
        whole(x) - F.linear(h, weight, whole.head.bias)
        for x, h in zip(batches, inputs, strict=True)
    ]
    slope, constant = fitted(inputs, lacking)
    torch.testing.assert_close(model.head.weight, weight + slope, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.head.bias, whole.head.bias + constant, rtol=1e-3, atol=1e-4)


def test_inputs_that_take_much_memory_come_from_fewer_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then more rows of each are kept, so that the result is as good."""
    errors, passes = [], []
    for most_bytes in (2**29, 2**20):
        monkeypatch.setattr(
            "dynopt_ray.structure.refit.original_network._MOST_KEPT_BYTES", most_bytes
        )
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        model = nn.Sequential(*layers).eval()
        batches = [torch.randn(64, 2, 12, 12) for _ in range(12)]
        wanted = model(batches[-1]).detach()
        graph = trace(model, batches[0])
        plan = Shrink("0", remove=[1, 4, 6])
        passes.append(passes_of(model, partial(graph.apply, plan, compensate=batches))[0])
        errors.append((model(batches[-1]) - wanted).square().mean().item())
    # An input has 288 KiB: with 1 MiB, three batches have to give 2^14 rows.
    assert passes == [2 * 12, 2 * 3]
    assert errors[1] < 1.05 * errors[0]
