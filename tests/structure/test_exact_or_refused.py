"""Networks that compute with sizes, places and halves: an edit is exact, or it is refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Grow, Shrink, trace
from dynopt_ray.structure.plans.edits import Init


class Middle(nn.Module):
    """A linear layer of 6 units, an operation, a linear layer."""

    def __init__(self, operation: Callable[["Middle", Tensor], Tensor], read: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(read, 3)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.operation(self, self.first(x)))
        return y


class Reader(nn.Module):
    """A linear layer whose units are read by something made of a parameter."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.made = nn.Linear(5, 6), made
        self.weight = nn.Parameter(torch.rand(3, 6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x).tanh(), self.made(self.weight))


def in_a_buffer(_: Middle, h: Tensor) -> Tensor:
    out = h.new_zeros(*h.shape[:-1], 10)
    out[..., : h.shape[-1]] = h
    return out


def into_an_output(_: Middle, h: Tensor) -> Tensor:
    out = h.new_zeros(*h.shape[:-1], 10)
    torch.mul(h, 2, out=out[..., : h.shape[-1]])
    return out


def last_set_to_zero(_: Middle, h: Tensor) -> Tensor:
    h = h.clone()
    h[..., -1] = 0
    return h


def last_two_scaled(_: Middle, h: Tensor) -> Tensor:
    h = h.clone()
    h[..., -2:].mul_(3)
    return h


def even_ones_rectified(_: Middle, h: Tensor) -> Tensor:
    out = h.clone()
    out[..., ::2] = h[..., ::2].relu()
    return out


def two_parts(_: Middle, h: Tensor, at: int = 3) -> Tensor:
    return torch.cat([h[..., :at].relu(), h[..., at:].tanh()], -1)


def halves(_: Middle, h: Tensor) -> Tensor:
    return two_parts(_, h, h.shape[-1] // 2)


def last_three(_: Middle, h: Tensor) -> Tensor:
    return two_parts(_, h, -3)


def chunks(number: int) -> Callable[[Middle, Tensor], Tensor]:
    def operation(_: Middle, h: Tensor) -> Tensor:
        return torch.cat([part * (i + 1) for i, part in enumerate(h.chunk(number, -1))], -1)

    return operation


OPERATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "n + 1": lambda _, h: h / (h.shape[-1] + 1),
    "1 - n": lambda _, h: h * (1 - h.shape[-1]),
    "n % 4": lambda _, h: h * (h.shape[-1] % 4),
    "sqrt(2 n)": lambda _, h: h / math.sqrt(2 * h.shape[-1]),
    "int(n)": lambda _, h: h / int(h.shape[-1]),
    "numpy sqrt(n)": lambda _, h: h / float(np.sqrt(h.shape[-1])),
    "tensor(n)": lambda _, h: h / torch.tensor(h.shape[-1]),
    "full(n)": lambda _, h: h * torch.full((1,), h.shape[-1], device=h.device),
    "numel": lambda _, h: h / h[0].numel(),
    "len(weight)": lambda model, h: h / len(model.first.weight),
    "attribute + 1": lambda model, h: h / (model.first.out_features + 1),
    "if n > 6": lambda _, h: h * 2 if h.shape[-1] > 6 else h,
    "if n < 7": lambda _, h: h * 2 if h.shape[-1] < 7 else h,
    "n times": lambda _, h: sum((h * 0.1 for _ in range(h.shape[-1])), torch.zeros(())),
    "halves": halves,
    "two parts": two_parts,
    "last three": last_three,
    "last set to zero": last_set_to_zero,
    "last two scaled": last_two_scaled,
    "even ones rectified": even_ones_rectified,
    "three chunks": chunks(3),
    "four chunks": chunks(4),
    "roll": lambda _, h: h.roll(1),
    "roll several": lambda _, h: torch.roll(h, (0, 1), (0, -1)),
    "sort backwards": lambda _, h: h.sort(-1, True)[0],
    "all of topk": lambda _, h: h.topk(h.size(-1)).values,
    "flip": lambda _, h: h.flip(0, -1),
    "argument of softmax": lambda _, h: h * F.softmax(h, dim=-1),
}


# Of all others, tracing sees that growth is not exact.
GROWN = {"halves", "two parts", "last three", "last set to zero", "last two scaled", "three chunks"}
REFUSED = {"int(n)", "numpy sqrt(n)", "n times"}
FIXED = {"even ones rectified", "roll", "roll several", "sort backwards", "all of topk", "flip"}


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_sizes_and_places_never_show(name: str, init: Init) -> None:
    torch.manual_seed(0)
    outcomes = _exact_or_refused(lambda: Middle(OPERATIONS[name]), torch.randn(4, 3, 5), init)
    if name == "four chunks":  # of six: the last of the three there are may grow
        assert "refused" in outcomes
    elif name in FIXED:
        assert not outcomes
    else:
        seen = {"grown": GROWN, "refused": REFUSED}
        assert outcomes == {next((o for o, names in seen.items() if name in names), "inexact")}


@pytest.mark.parametrize(("operation", "read"), [(in_a_buffer, 10), (into_an_output, 10)])
def test_what_is_written_elsewhere_is_fixed(
    operation: Callable[[Middle, Tensor], Tensor], read: int
) -> None:
    graph = trace(Middle(operation, read), torch.randn(4, 5))
    assert "first" in graph.fixed


NORMALISED: dict[str, Callable[[], nn.Module]] = {
    "group norm over units": lambda: nn.GroupNorm(1, 3),
    "instance norm over units": lambda: nn.InstanceNorm1d(3),
    "batch norm over units": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "softmax without dim": lambda: nn.Softmax(),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", NORMALISED)
def test_statistics_over_units_never_show(name: str, init: Init) -> None:
    torch.manual_seed(0)
    norm = NORMALISED[name]()
    outcomes = _exact_or_refused(lambda: Middle(lambda _, h: norm(h)), torch.randn(4, 3, 5), init)
    # Without a dim, torch takes the first of three: no units lie there.
    assert outcomes == {"grown" if name == "softmax without dim" else "inexact"}


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "abs": torch.abs,
    "relu": torch.relu,
    "product with itself": lambda w: w * w,
    "quotient": lambda w: w / w.detach().clone(),
}


@pytest.mark.parametrize("init", ["fresh", "split"])
@pytest.mark.parametrize("name", READERS)
def test_weights_that_are_not_read_linearly_never_show(name: str, init: Init) -> None:
    torch.manual_seed(0)
    outcomes = _exact_or_refused(lambda: Reader(READERS[name]), torch.randn(4, 5), init)
    assert outcomes == {"inexact"}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("init", ["fresh", "split"])
def test_weight_norm_never_shows(init: Init, dim: int) -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), normed(nn.Linear(6, 2), dim=dim))

    outcomes = _exact_or_refused(make, torch.randn(4, 5), init)
    assert outcomes == {"grown"}


def test_tied_weights_never_show_and_say_so() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight.T).relu() @ self.weight

    graph = trace(Tied(), torch.randn(4, 5))
    assert not graph["weight"].exact_growth
    assert {s.role for s in graph["weight"].slices} == {"out"}


def _exact_or_refused(make: Callable[[], nn.Module], x: Tensor, init: Init) -> set[str]:
    """Grow each group by its step, and remove units that nothing reads any more; the outcomes."""
    outcomes = set()
    for name in trace(make(), x).widths:
        model = make().eval()
        graph = trace(model, x)
        before = model(x)
        if not graph[name].exact_growth:
            outcomes.add("inexact")
            continue
        try:
            graph.apply(Grow(name, units=graph[name].step, init=init))
        except EditError:
            outcomes.add("refused")
            assert graph.widths == trace(model, x).widths
        else:
            outcomes.add("grown")
            for unit in (0, -1):
                _remove_unread(make().eval(), name, unit, x)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    return outcomes


def _remove_unread(model: nn.Module, name: str, unit: int, x: Tensor) -> None:
    graph = trace(model, x)
    group, tensors = graph[name], graph.tensors()
    if group.step > 1 or group.width == group.min_width:
        return
    with torch.no_grad():
        for s in group.slices:
            if s.role == "in":
                tensors[s.parameter].index_fill_(s.dim, s.positions[unit], 0)
    before = model(x)
    graph.apply(Shrink(name, remove=[unit % group.width]))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
