"""What tracing makes of things that real networks do in their forward pass."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Grow, trace


class _Kept(nn.Module):
    """Keeps tensors of its last pass, and registers a hook when it runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)
        self.gain = nn.Parameter(torch.rand(6))
        self.kept: dict[str, Any] = {"name": "gain"}
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "hooked"):
            self.hooked = self.first.register_forward_hook(lambda _, __, out: out + 1)
        gain = self.kept.setdefault("gain", self.gain * 2)
        self.seen = torch.zeros(len(x))
        out: Tensor = self.second(self.first(x) * gain)
        return out


def test_what_a_pass_keeps_does_not_outlive_tracing_or_an_edit() -> None:
    model, x = _Kept(), torch.randn(4, 3)
    before = model(x).detach()
    graph = trace(model, x)
    assert len(model.first._forward_hooks) == 1
    assert model.kept.keys() == {"name", "gain"}
    del model.kept["gain"]
    graph = trace(model, x)
    assert model.kept.keys() == {"name"}
    model(x[:2])  # replaces a buffer, which is nobody's business
    graph.apply([Grow("first", units=2)])
    assert model.kept.keys() == {"name"}
    torch.testing.assert_close(model(x), before)


class _Scaled(nn.Module):
    """An attribute that gives a size, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 6
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).view(-1, self.dim)) / self.dim
        return out


def test_growth_is_not_exact_where_an_attribute_scales() -> None:
    model = _Scaled()
    graph = trace(model, torch.randn(4, 3))
    assert not graph["first"].exact_growth
    graph.apply([Grow("first", units=2, exact=False)])
    assert model.dim == 8


class _AlongChannels(nn.Module):
    """A convolution over the channels themselves (ECA): each sees its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.over = nn.Conv2d(3, 6, 1), nn.Conv1d(1, 1, 3, padding=1)
        self.second = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        gate = self.over(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        out: Tensor = self.second((x * gate[..., None, None]).mean((2, 3)))
        return out


def test_units_that_see_their_neighbours_do_not_grow_exactly() -> None:
    graph = trace(_AlongChannels(), torch.randn(4, 3, 5, 5))
    assert graph.widths == {"first": 6}
    assert not graph["first"].exact_growth


def test_normed_weights_grow_with_what_they_read() -> None:
    model = nn.Sequential(
        weight_norm(nn.Linear(3, 6)), nn.Tanh(), weight_norm(nn.Linear(6, 4)), nn.Linear(4, 2)
    )
    x = torch.randn(4, 3)
    before = model(x)
    graph = trace(model, x)
    assert graph.widths == {"0": 6, "2": 4}
    graph.apply([Grow("0", units=2), Grow("2", units=3)])
    torch.testing.assert_close(model(x), before)


def test_losses_fix_what_is_compared() -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(*s) for s in ((3, 6), (6, 4), (6, 4)))

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            hidden = self.first(x)
            one, other = self.second(hidden), self.third(hidden)
            return F.cross_entropy(one, labels) + F.mse_loss(one.detach(), other)

    graph = trace(Trained(), (torch.randn(4, 3), torch.tensor([0, 1, 2, 3])))
    assert graph.widths == {"first": 6}
    assert "labels" in graph.fixed["second"]


class _Aligned(nn.Module):
    """An operation that wants widths in multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.shape[1] % 4:
            raise ValueError("rows must be aligned")
        out: Tensor = self.second(x)
        return out


def test_groups_that_run_at_some_widths_only_have_a_step() -> None:
    graph = trace(_Aligned(), torch.randn(4, 3))
    assert graph["first"].step == 4
    with pytest.raises(EditError, match="in steps of 4"):
        graph.apply([Grow("first", units=2)])
    graph.apply([Grow("first", units=4)])


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no such product")
def test_experts_share_their_widths() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.up = nn.Parameter(torch.randn(2, 8, 12))
            self.down = nn.Parameter(torch.randn(2, 12, 8))
            self.second = nn.Linear(8, 2)

        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            hidden = torch._grouped_mm(self.first(x), self.up, offs=ends)
            hidden = torch._grouped_mm(hidden.relu(), self.down, offs=ends)
            out: Tensor = self.second(hidden)
            return out

    inputs = (torch.randn(4, 3), torch.tensor([1, 4], dtype=torch.int32))
    model = Experts()
    before = model(*inputs)
    graph = trace(model, inputs)
    assert graph.widths == {"first": 8, "up": 12, "down": 8}
    assert {group.step for group in graph} == {4}
    graph.apply([Grow(group.name, units=4) for group in graph])
    torch.testing.assert_close(model(*inputs), before)
