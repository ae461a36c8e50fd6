"""Scores against figures worked out by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.criteria import (
    Criterion,
    magnitude,
    mean_gradients,
    random,
    taylor,
    unit_scores,
    weight_scores,
)
from dynopt_ray.errors import DivergedError, MissingGradientError
from dynopt_ray.structure import Graph, trace

X = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
Y = torch.tensor([[10.0], [8.0]])


def two_layers() -> Graph:
    """h = relu(3·x0 + 4·x1, x0 + 2), y = 2·h0 − h1 + 0.5."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        model.get_parameter("0.bias").copy_(torch.tensor([0.0, 2.0]))
        model.get_parameter("2.weight").copy_(torch.tensor([[2.0, -1.0]]))
        model.get_parameter("2.bias").fill_(0.5)
    return trace(model, torch.zeros(2, 2))


def convolutions() -> Graph:
    """A channel of one group becomes 2 × 2 columns of a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
    )
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([3.0, -1.0]).reshape(2, 1, 1, 1))
        model.get_parameter("1.weight").copy_(torch.tensor([4.0, 2.0]))
        model.get_parameter("1.bias").copy_(torch.tensor([0.0, -2.0]))
        model.get_buffer("1.running_mean").fill_(100.0)
        model.get_parameter("4.weight").copy_(
            torch.tensor([[0.0, 5.0, 0.0, 0.0, 1.0, 1.0, -1.0, 1.0]])
        )
    return trace(model, torch.zeros(2, 1, 2, 2))


def values(scores: Tensor) -> list[float]:
    return [round(float(value), 4) for value in scores]


@pytest.mark.parametrize(
    ("order", "expected"), [(1, [3 + 4 + 0 + 2, 1 + 0 + 2 + 1]), (2, [29**0.5, 6**0.5])]
)
def test_magnitude_of_units(order: int, expected: list[float]) -> None:
    scores = unit_scores(two_layers(), {"name": "magnitude", "order": order})
    assert values(scores["0"]) == pytest.approx(expected, abs=1e-4)


def test_magnitude_counts_kernels_scales_and_all_columns_of_a_channel_but_no_buffers() -> None:
    one, two = (unit_scores(convolutions(), magnitude(order=order))["0"] for order in (1, 2))
    assert values(one) == [3 + 4 + 0 + 5, 1 + 2 + 2 + 4]
    assert values(two) == pytest.approx([50**0.5, 13**0.5], abs=1e-4)


def test_magnitude_of_weights() -> None:
    scores = weight_scores(two_layers(), "magnitude")
    assert list(scores) == ["0.weight", "2.weight"]
    assert scores["0.weight"].tolist() == [[3.0, 4.0], [1.0, 0.0]]
    assert scores["2.weight"].tolist() == [[2.0, 1.0]]


# h = (7, 3) and (8, 2), y = 11.5 and 14.5, dL/dy = 2·(1.5, 6.5) / 2 with the mean over 2 samples.
_SLOPES = (1.5, 6.5)
_UNITS = [2 * (1.5 * 7 + 6.5 * 8), 1 * (1.5 * 3 + 6.5 * 2)]


@pytest.mark.parametrize(
    ("squared", "expected"), [(False, _UNITS), (True, [unit**2 for unit in _UNITS])]
)
def test_taylor_of_units(squared: bool, expected: list[float]) -> None:
    criterion = taylor(squared=squared)
    scores = unit_scores(two_layers(), criterion, [(X, Y)], loss=F.mse_loss)
    assert values(scores["0"]) == expected


def test_taylor_of_weights() -> None:
    scores = weight_scores(two_layers(), "taylor", [(X, Y)], loss=F.mse_loss)
    first, second = _SLOPES
    # dL/dW of what makes h0 is 2·slope·x: x = (1, 1) and (0, 2).
    assert values(scores["0.weight"][0]) == [3 * 2 * first, 4 * (2 * first + 2 * 2 * second)]
    assert values(scores["0.weight"][1]) == [1 * first, 0.0]
    assert values(scores["2.weight"][0]) == _UNITS


def test_taylor_estimates_the_change_of_the_loss_when_a_unit_goes() -> None:
    graph = two_layers()
    with torch.no_grad():
        graph.model.get_parameter("2.weight")[0, 1] = 1e-3
    score = unit_scores(graph, "taylor", [(X, Y)], loss=F.mse_loss)["0"][1]
    before = F.mse_loss(graph.model(X), Y)
    with torch.no_grad():
        graph.model.get_parameter("2.weight")[0, 1] = 0.0
    after = F.mse_loss(graph.model(X), Y)
    assert score.item() == pytest.approx((before - after).abs().item(), rel=1e-2)


def test_taylor_sums_before_it_takes_the_size() -> None:
    graph = trace(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)), torch.zeros(2, 1))
    with torch.no_grad():
        graph.model.get_parameter("0.weight").fill_(1.0)
        graph.model.get_parameter("0.bias").fill_(0.0)
        graph.model.get_parameter("1.weight").copy_(torch.tensor([[1.0], [1.0]]))
    x, y = torch.ones(1, 1), torch.zeros(1, 2)

    def opposite(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - output[:, 1] + target[:, 0]).mean()

    assert values(unit_scores(graph, "taylor", [(x, y)], loss=opposite)["0"]) == [0.0]


def test_random_is_seeded_and_stands_alone() -> None:
    graph = two_layers()
    torch.manual_seed(1)
    first = unit_scores(graph, random(seed=3))["0"]
    torch.manual_seed(2)
    assert torch.equal(first, unit_scores(graph, "random", None)["0"]) is False
    assert torch.equal(first, unit_scores(graph, {"name": "random", "seed": 3})["0"])
    assert bool(((first >= 0) & (first < 1)).all())


@pytest.mark.parametrize("criterion", [magnitude(), taylor()])
def test_batches_of_any_size_give_the_same_scores(criterion: Criterion) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 2, generator=generator), torch.randn(12, 1, generator=generator)
    graph = two_layers()
    whole = unit_scores(graph, criterion, [(x, y)], loss=F.mse_loss)["0"]
    uneven = [(x[:1], y[:1]), (x[1:6], y[1:6]), (x[6:], y[6:])]
    assert torch.allclose(whole, unit_scores(graph, criterion, uneven, loss=F.mse_loss)["0"])
    twice = [(x, y), (x, y)]
    assert torch.allclose(whole, unit_scores(graph, criterion, twice, loss=F.mse_loss)["0"])


def test_units_that_no_weight_reads_are_scored_by_what_makes_them() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            product: Tensor = self.query(x) @ self.key(x).transpose(-1, -2)
            return product

    torch.manual_seed(0)
    graph = trace(Attention(), torch.zeros(2, 5, 3), heads="dims")
    (group,) = graph.groups
    assert {s.role for s in group.slices} == {"out"}
    x, y = torch.randn(2, 5, 3), torch.zeros(2, 5, 5)
    scores = unit_scores(graph, "taylor", [(x, y)], loss=F.mse_loss)[group.name]
    assert bool((scores > 0).all())


def test_gradients_leave_the_network_alone_and_reach_frozen_parameters() -> None:
    model = convolutions().model
    model.get_buffer("1.running_mean").zero_()
    model.get_parameter("4.weight").requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    gradients = mean_gradients(model, [(torch.ones(3, 1, 2, 2), torch.ones(3, 1))], F.mse_loss)
    assert bool((gradients["4.weight"] != 0).any())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_gradients_are_those_of_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))
    first, second = (mean_gradients(model, [(X, Y)], F.mse_loss) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_missing_gradients_are_refused() -> None:
    graph = two_layers()
    with pytest.raises(MissingGradientError, match="pass batches=… and loss=…"):
        unit_scores(graph, "taylor")
    with pytest.raises(MissingGradientError, match="pass batches=… and loss=…"):
        weight_scores(graph, "taylor", [(X, Y)])
    for criterion in ("taylor", "hessian", "activation", "reconstruction"):
        for batches in ([], [(X[:0], Y[:0])]):
            with pytest.raises(MissingGradientError, match="no samples to score with"):
                unit_scores(graph, criterion, batches, loss=F.mse_loss)

    def elsewhere(output: Tensor, target: Tensor) -> Tensor:
        return (graph.model.get_parameter("2.bias") - target + 0 * output.detach()).mean()

    for criterion in ("taylor", "hessian"):
        with pytest.raises(MissingGradientError, match=r"does not depend on parameter '0\.weight'"):
            unit_scores(graph, criterion, [(X, Y)], loss=elsewhere)
    with pytest.raises(MissingGradientError, match=r"does not depend on the output of '2\.weight'"):
        unit_scores(graph, "reconstruction", [(X, Y)], loss=elsewhere)


def test_nan_is_refused_with_its_place() -> None:
    graph = two_layers()
    with pytest.raises(DivergedError, match="the loss is nan on batch 1"):
        unit_scores(graph, "taylor", [(X, Y), (X, Y * torch.nan)], loss=F.mse_loss)
    with pytest.raises(DivergedError, match="the loss is nan on batch 0"):
        unit_scores(graph, "hessian", [(X, Y * torch.nan)], loss=F.mse_loss)
    for criterion in ("taylor", "hessian", "activation", "reconstruction"):
        with pytest.raises(DivergedError, match=r"inputs in batch 1 of the data .* not finite"):
            unit_scores(graph, criterion, [(X, Y), (X * torch.nan, Y)], loss=F.mse_loss)
    with pytest.raises(DivergedError, match="so large that its squares overflow"):
        unit_scores(graph, "reconstruction", [(X * 1e30, Y)], loss=F.mse_loss)
    with torch.no_grad():
        graph.model.get_parameter("0.weight")[1, 0] = torch.inf
    with pytest.raises(DivergedError, match=r"inf for unit of group '0' at \[1\]"):
        unit_scores(graph, "magnitude")
