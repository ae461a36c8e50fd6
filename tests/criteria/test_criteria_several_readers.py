"""Scores by hand where a unit has several readers, normalisations or places."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.criteria import observed, unit_scores, weight_scores
from dynopt_ray.criteria.activation_energy import activation
from dynopt_ray.criteria.batchnorm_scales import batchnorm_scale
from dynopt_ray.criteria.magnitude_norms import magnitude
from dynopt_ray.criteria.reconstruction_errors import reconstruction
from dynopt_ray.criteria.taylor_expansion import taylor
from dynopt_ray.structure import Graph, trace
from tests.criteria.test_criteria_values import values


class Fork(nn.Module):
    """Two units, h = relu(x), which two layers read: y = a·h and z = b·h + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.a, self.b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2))
            self.a.weight.copy_(torch.tensor([[2.0, 3.0]]))
            self.b.weight.copy_(torch.tensor([[1.0, 0.5]]))
            self.b.bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return torch.cat([self.a(h), self.b(h)], dim=1)


X = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
Y = torch.zeros(2, 2)


def fork() -> Graph:
    return trace(Fork(), X)


def signed(output: Tensor, target: Tensor) -> Tensor:
    """Its gradient is 1 by the first column and -1 by the second, for each sample."""
    return (output[:, 0] - output[:, 1] + 0 * target[:, 0]).mean()


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        # The mean of h is (2, 1), so the changes are 2·2 and 3·1 in a, -1·2 and -0.5·1 in b.
        ("sum", [4 - 2, 3 - 0.5]),
        ("mean", [(4 + 2) / 2, (3 + 0.5) / 2]),
        ("max", [4.0, 3.0]),
    ],
)
@pytest.mark.parametrize("squared", [False, True])
def test_taylor_of_a_unit_that_two_layers_read(
    aggregate: Any, squared: bool, expected: list[float]
) -> None:
    if squared:
        expected = {
            "sum": [2.0**2, 2.5**2],
            "mean": [(16 + 4) / 2, (9 + 0.25) / 2],
            "max": [16.0, 9.0],
        }[aggregate]
    criterion = taylor(squared=squared, aggregate=aggregate)
    scores = unit_scores(fork(), criterion, [(X, Y)], loss=signed)
    assert values(scores["first"]) == expected


def test_hessian_of_a_unit_that_two_layers_read() -> None:
    # For each sample what it changes in a less what it changes in b: (2 - 1)·h0, (3 - 0.5)·h1.
    scores = unit_scores(fork(), "hessian", [(X, Y)], loss=signed)
    assert values(scores["first"]) == [(1**2 + 3**2) / 4, (5**2 + 0**2) / 4]


def test_activation_of_a_unit_that_two_layers_read() -> None:
    energy = unit_scores(fork(), "activation", [(X[:1], Y[:1]), (X[1:], Y[1:])])["first"]
    # h0² is 5 and h1² 2 on average.
    assert values(energy) == [5 * 2**2 + 5 * 1**2, 2 * 3**2 + 2 * 0.5**2]
    share = unit_scores(fork(), activation(measure="nonzero"), [(X, Y)])["first"]
    assert values(share) == [1.0, 0.5]


def test_the_share_that_is_on_is_a_mean_over_layers() -> None:
    class Shifted(Fork):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return torch.cat([self.a(h.relu()), self.b((h - 1.5).relu())], dim=1)

    graph = trace(Shifted(), X)
    share = unit_scores(graph, activation(measure="nonzero"), [(X, Y)])["first"]
    # h0 is 1 and 3, h1 2 and 0: a sees both of h0 and one of h1, b one of each.
    assert values(share) == [(1.0 + 0.5) / 2, (0.5 + 0.5) / 2]


def test_the_share_that_is_on_is_a_mean_over_the_columns_of_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    x = torch.tensor([[1.0, 2.0, 3.0, -4.0], [0.0, 0.0, 5.0, -4.0]]).reshape(2, 1, 2, 2)
    scores = unit_scores(trace(model, x), activation(measure="nonzero"), [(x, Y)])
    assert values(scores["0"]) == [(3 + 1) / 8, (1 + 1) / 8]


@pytest.mark.parametrize(
    ("aggregate", "order", "expected"),
    [
        ("sum", 1, [1 + 2 + 1, 1 + 3 + 0.5]),
        ("mean", 1, [4 / 3, 4.5 / 3]),
        ("max", 1, [2.0, 3.0]),
        ("sum", 2, [math.sqrt(1 + 4 + 1), math.sqrt(1 + 9 + 0.25)]),
        ("mean", 2, [math.sqrt(6 / 3), math.sqrt(10.25 / 3)]),
        ("max", 2, [2.0, 3.0]),
    ],
)
def test_magnitude_of_a_unit_that_two_layers_read(
    aggregate: Any, order: Any, expected: list[float]
) -> None:
    scores = unit_scores(fork(), magnitude(order=order, aggregate=aggregate))["first"]
    assert values(scores) == pytest.approx(expected, abs=1e-4)


def test_taylor_of_a_unit_that_no_weight_reads_takes_what_makes_it() -> None:
    class Products(nn.Module):
        """Products of queries and keys."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            product: Tensor = self.query(x) @ self.key(x).transpose(-1, -2)
            return product

    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3), torch.zeros(2, 5, 5)
    graph = trace(Products(), x, heads="dims")
    found = {}
    for aggregate in ("sum", "mean", "max"):
        criterion = {"name": "taylor", "aggregate": aggregate}
        found[aggregate] = unit_scores(graph, criterion, [(x, y)], loss=F.mse_loss)["query"]
    # A coordinate is a product of the two, so each of them changes the loss as much.
    torch.testing.assert_close(found["mean"], found["max"])
    torch.testing.assert_close(found["sum"], 2 * found["max"])
    assert bool((found["max"] > 0).all())


def test_sums_over_many_weights_of_low_precision_are_in_float32() -> None:
    model = nn.Sequential(nn.Linear(1001, 2, bias=False), nn.Linear(2, 1)).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    scores = unit_scores(trace(model, torch.zeros(2, 1001).bfloat16()), magnitude(order=1))
    assert scores["0"].tolist() == [1002.0, 1002.0]  # of 8 bits there would be 1000


class Normed(nn.Module):
    """Two channels that two normalisations scale, and a layer reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.one, self.two = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.last = nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([3.0, -1.0]).reshape(2, 1, 1, 1))
            self.one.weight.copy_(torch.tensor([4.0, -2.0]))
            self.one.bias.copy_(torch.tensor([0.0, 8.0]))
            self.two.weight.copy_(torch.tensor([-1.0, 5.0]))
            self.last.weight.copy_(torch.tensor([0.5, 7.0]).reshape(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        out: Tensor = self.last(self.one(h) + self.two(h))
        return out


IMAGES = torch.zeros(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("sum", [5.0, 7.0]), ("mean", [2.5, 3.5]), ("max", [4.0, 5.0])]
)
def test_batchnorm_scale_of_a_unit_that_two_normalisations_see(
    aggregate: Any, expected: list[float]
) -> None:
    scores = unit_scores(trace(Normed(), IMAGES), batchnorm_scale(aggregate=aggregate))
    assert values(scores["conv"]) == expected


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        # What makes a unit, its factors and shifts in both, and what reads it.
        ("sum", [3 + 4 + 0 + 1 + 0 + 0.5, 1 + 2 + 8 + 5 + 0 + 7]),
        ("mean", [8.5 / 6, 23 / 6]),
        ("max", [4.0, 8.0]),
    ],
)
def test_magnitude_counts_each_factor_and_shift_as_a_part_of_its_own(
    aggregate: Any, expected: list[float]
) -> None:
    criterion = magnitude(order=1, aggregate=aggregate)
    scores = unit_scores(trace(Normed(), IMAGES), criterion)
    assert values(scores["conv"]) == pytest.approx(expected, abs=1e-4)


# Each of the next is worked out with the ridge of a hundredth of each input's own moment.
_RIDGED = 1.01


def _read_by(*weights: float, bias: bool = True) -> nn.Sequential:
    """Units that are the inputs themselves, and one output that reads them."""
    num = len(weights)
    model = nn.Sequential(nn.Linear(num, num, bias=False), nn.Linear(num, 1, bias=bias))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(num))
        model.get_parameter("1.weight").copy_(torch.tensor([weights]))
        if bias:
            model.get_parameter("1.bias").zero_()
    return model


def _reconstruction(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    batches = [(x, torch.zeros(len(x), 1))]
    return unit_scores(trace(model, x), reconstruction(**options), batches, loss=F.mse_loss)["0"]


# Two inputs of mean 0 that know nothing of each other, with second moments 1 and 4.
APART = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])


def test_reconstruction_of_inputs_that_cannot_stand_in_is_their_share_of_the_energy() -> None:
    scores = _reconstruction(_read_by(3.0, 1.0), APART, weighted=False)
    assert scores.tolist() == pytest.approx([_RIDGED * 9 / 13, _RIDGED * 4 / 13], rel=1e-5)


@pytest.mark.parametrize(("bias", "energies"), [(True, (9.0, 4.0)), (False, (9.0 * 26, 4.0))])
def test_reconstruction_is_about_the_mean_where_a_bias_takes_up_a_constant(
    bias: bool, energies: tuple[float, float]
) -> None:
    # Without a bias the first input has the second moment 1 + 5².
    x = APART + torch.tensor([5.0, 0.0])
    scores = _reconstruction(_read_by(3.0, 1.0, bias=bias), x, weighted=False)
    wanted = [_RIDGED * energy / sum(energies) for energy in energies]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_normalisation_behind_a_layer_takes_up_a_constant_too() -> None:
    model = nn.Sequential(*_read_by(3.0, 1.0, bias=False), nn.BatchNorm1d(1))
    x = APART + torch.tensor([5.0, 0.0])
    scores = _reconstruction(model, x, weighted=False)
    assert scores.tolist() == pytest.approx([_RIDGED * 9 / 13, _RIDGED * 4 / 13], rel=1e-5)


def test_reconstruction_scores_what_the_dearest_until_then_cost() -> None:
    # Equal in six of eight samples: the covariance is 1/2. y is their difference, of energy 1.
    pairs = [(1.0, 1.0)] * 3 + [(-1.0, -1.0)] * 3 + [(1.0, -1.0), (-1.0, 1.0)]
    x = torch.tensor(pairs)
    scores = _reconstruction(_read_by(1.0, -1.0), x, weighted=False)
    first = _RIDGED - 0.5**2 / _RIDGED
    second = (1 - 0.5 / _RIDGED) ** 2 * _RIDGED
    assert first == pytest.approx(0.7625, abs=1e-4)
    assert second == pytest.approx(0.2575, abs=1e-4)  # what is left then weighs half
    assert scores.tolist() == pytest.approx([first, first], rel=1e-4)
    batches = [(x, torch.zeros(8, 1))]
    graph = trace(_read_by(1.0, -1.0), x)
    weights = weight_scores(graph, reconstruction(weighted=False), batches)["1.weight"]
    assert weights[0].tolist() == pytest.approx([first, first], rel=1e-4)


def test_reconstruction_weighs_errors_by_half_the_mean_square_of_the_slopes() -> None:
    # y = 3·x0 + x1 is 5, 1, -1, -5, and the slope of (y - 0)² is 2·y: 4·(25 + 1 + 1 + 25) / 4 / 2.
    sensitivity = 26.0
    scores = _reconstruction(_read_by(3.0, 1.0), APART)
    wanted = [sensitivity * _RIDGED * 9, sensitivity * _RIDGED * 4]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-5)
    graph, batches = trace(_read_by(3.0, 1.0), APART), [(APART, torch.zeros(4, 1))]
    weights = weight_scores(graph, "reconstruction", batches, loss=F.mse_loss)["1.weight"]
    assert weights[0].tolist() == pytest.approx(wanted, rel=1e-5)


def test_of_many_equal_units_all_but_one_of_each_kind_go_for_nothing() -> None:
    """A group of up to 127 loses its units one by one, so that it sees when a copy is the last."""
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 32))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(32).repeat(2, 1))
        model.get_parameter("1.weight").copy_(torch.eye(32).repeat(1, 2))
    scores = _reconstruction(model, x, weighted=False)
    pairs = scores.reshape(2, 32).sort(0).values
    assert bool((pairs[0] < 0.05 * pairs[1].min()).all())


@pytest.mark.parametrize(
    ("size", "num_rows"), [((2, 2), 4), ((2, 4), 8), ((3, 3), 8), ((8, 8), 8), ((1, 1), 1)]
)
def test_of_many_places_eight_per_sample_are_looked_at(
    size: tuple[int, int], num_rows: int
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    x = torch.randn(5, 1, *size)
    graph = trace(model, x)
    num_places = size[0] * size[1]
    for batch in observed(graph, ["1.weight"], [(x, torch.zeros(5))]):
        (one,) = batch.values()
        assert one.places == num_places
        rows = one.seen.rows.reshape(5, num_rows)
        assert torch.equal(rows // num_places, torch.arange(5)[:, None].expand(5, num_rows))
        if num_places <= 8:
            assert rows.flatten().tolist() == list(range(5 * num_places))
        assert one.seen.inputs_GRK.shape == (1, 5 * num_rows, 2)


@pytest.mark.parametrize("side", [2, 4])
def test_reconstruction_counts_the_slopes_at_all_places(side: int) -> None:
    """Of 16 places 8 are looked at, and each of them stands for two."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1), nn.Flatten())
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(2).reshape(2, 2, 1, 1))
        model.get_parameter("1.weight").copy_(torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1))
        model.get_parameter("1.bias").zero_()
    x = APART.reshape(4, 2, 1, 1).expand(4, 2, side, side).contiguous()

    def total(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum() / len(target)

    batches = [(x, torch.zeros(4, side**2))]
    scores = unit_scores(trace(model, x), "reconstruction", batches, loss=total)["0"]
    wanted = [side**2 * 26 * _RIDGED * 9, side**2 * 26 * _RIDGED * 4]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-5)


def test_reconstruction_of_a_unit_that_two_layers_read_is_the_sum() -> None:
    batches = [(APART, torch.zeros(4, 2))]
    scores = unit_scores(trace(Fork(), APART), reconstruction(weighted=False), batches)["first"]
    # b has a bias. About the means, h has the variances 1/4 and 1, so each costs half there.
    in_b = [_RIDGED * (1 * 0.25) / 0.5, _RIDGED * (0.5**2 * 1) / 0.5]
    # a has none, and about zero each stands in for a part of the other: C is [[½, ½], [½, 2]].
    c00, c11, c01 = _RIDGED * 0.5, _RIDGED * 2.0, 0.5
    energy = 2**2 * 0.5 + 3**2 * 2.0 + 2 * (2 * 3) * c01
    in_a = [
        2**2 * (c00 - c01**2 / c11) / energy,
        (3 + 2 * c01 / c11) ** 2 * c11 / energy,  # once the first has gone
    ]
    wanted = [in_a[0] + in_b[0], in_a[1] + in_b[1]]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-4)
