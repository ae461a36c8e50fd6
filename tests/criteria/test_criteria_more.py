"""More criteria against figures worked out by hand; `test_criteria_values` has the network."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.criteria import sample_gradients, unit_scores, weight_scores
from dynopt_ray.criteria.activation_energy import activation
from dynopt_ray.criteria.batchnorm_scales import batchnorm_scale
from dynopt_ray.criteria.gradient_sizes import gradient
from dynopt_ray.criteria.lamp_scores import lamp
from dynopt_ray.criteria.reconstruction_errors import reconstruction
from dynopt_ray.errors import CriterionError, MissingGradientError, UnknownNameError
from dynopt_ray.structure import Shrink, trace
from tests.criteria.test_criteria_values import X, Y, convolutions, two_layers, values

_LOSS = F.cross_entropy
# Of each sample's own loss by what the network gives: 2 · (1.5, 6.5).
_SLOPES = (3.0, 13.0)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (1, [3 + 29 + 16 + 62.5, 1.5 + 14.5 + 8 + 17.5]),
        (2, [math.hypot(3, 29, 16, 62.5), math.hypot(1.5, 14.5, 8, 17.5)]),
    ],
)
def test_gradient_of_units(order: int, expected: list[float]) -> None:
    scores = unit_scores(
        two_layers(), {"name": "gradient", "order": order}, [(X, Y)], loss=F.mse_loss
    )
    assert values(scores["0"]) == pytest.approx(expected, abs=1e-3)


def test_gradient_of_weights() -> None:
    scores = weight_scores(two_layers(), "gradient", [(X, Y)], loss=F.mse_loss)
    assert scores["0.weight"].tolist() == [[3.0, 29.0], [1.5, 14.5]]
    assert scores["2.weight"].tolist() == [[62.5, 17.5]]


def test_hessian_is_half_the_mean_of_squares_of_samples() -> None:
    graph = two_layers()
    one = [slope * h * 2 for slope, h in zip(_SLOPES, (7, 8), strict=True)]
    other = [slope * h * 1 for slope, h in zip(_SLOPES, (3, 2), strict=True)]
    expected = [sum(c**2 for c in changes) / 4 for changes in (one, other)]
    scores = unit_scores(graph, "hessian", [(X, Y)], loss=F.mse_loss)
    assert values(scores["0"]) == expected
    weights = weight_scores(graph, "hessian", [(X, Y)], loss=F.mse_loss)
    assert values(weights["2.weight"][0]) == expected
    # What makes unit 0 has the gradient slope · 2 · x, and x is (1, 1) and (0, 2).
    assert values(weights["0.weight"][0]) == [
        (3 * 2 * 1 * 3) ** 2 / 4,
        ((3 * 2 * 1 * 4) ** 2 + (13 * 2 * 2 * 4) ** 2) / 4,
    ]


def test_activation_energy_is_what_a_unit_gives() -> None:
    scores = unit_scores(two_layers(), "activation", [(X, Y)])
    assert values(scores["0"]) == [(14**2 + 16**2) / 2, (3**2 + 2**2) / 2]


def test_activation_energy_of_a_channel_that_becomes_four_columns() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        model.get_parameter("2.weight").copy_(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 3]]))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, -4.0]]).reshape(2, 1, 2, 2)
    scores = unit_scores(trace(model, x), activation(), [(x, Y)])
    # The first gives 1 · 1 + 1 · 4 and -4, the second 3 · 2 · 4 and -24: not squares of columns.
    assert values(scores["0"]) == [(5**2 + 4**2) / 2, (24**2 + 24**2) / 2]


def test_activation_counts_what_is_on() -> None:
    graph = two_layers()
    x = torch.tensor([[1.0, 1.0], [-3.0, 1.0], [-1.0, -1.0], [-5.0, 0.0]])  # h0 > 0, h1 > 0:
    scores = unit_scores(graph, activation(measure="nonzero"), [(x, torch.zeros(4, 1))])
    assert values(scores["0"]) == [1 / 4, 2 / 4]


def test_batchnorm_scale_is_the_factor_of_the_normalisation() -> None:
    assert values(unit_scores(convolutions(), "batchnorm_scale")["0"]) == [4.0, 2.0]
    with pytest.raises(CriterionError, match=r"no normalisation scales the units of \['0'\]"):
        unit_scores(two_layers(), "batchnorm_scale")


def test_fpgm_is_the_distance_to_all_others() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]]))
    scores = unit_scores(trace(model, X), "fpgm")
    assert values(scores["0"]) == [5.0 + 8.0, 5.0 + 5.0, 8.0 + 5.0]


def test_lamp_is_the_share_of_what_is_no_smaller() -> None:
    graph = two_layers()
    weights = weight_scores(graph, "lamp")
    assert values(weights["0.weight"].flatten()) == [
        9 / 25,
        1.0,
        pytest.approx(1 / 26, abs=1e-4),
        0.0,
    ]
    assert values(weights["2.weight"].flatten()) == [1.0, 1 / 5]
    assert values(unit_scores(graph, lamp())["0"]) == [1.0, pytest.approx(6 / 35, abs=1e-4)]


def _copies() -> tuple[nn.Sequential, Tensor]:
    """Units 0 and 1 are the same, unit 2 hardly does anything, unit 3 stands alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for name in ("0.weight", "0.bias"):
            model.get_parameter(name)[1] = model.get_parameter(name)[0]
        model.get_parameter("2.weight")[:, 2] = 1e-3
    return model, torch.randn(400, 6)


@pytest.mark.parametrize("weighted", [True, False])
def test_reconstruction_lets_one_of_two_equal_units_go(weighted: bool) -> None:
    model, x = _copies()
    criterion = reconstruction(weighted=weighted)
    y = torch.randint(3, (len(x),))
    scores = unit_scores(trace(model, x), criterion, [(x, y)], loss=F.cross_entropy)["0"]
    first, second = sorted(scores[:2].tolist())
    assert first < 0.02 * second
    assert scores[2] < 0.02 * second


def test_reconstruction_is_what_least_squares_leaves() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(2000, 6)
    graph = trace(model, x)
    scores = unit_scores(graph, reconstruction(weighted=False), [(x, torch.zeros(2000))])["0"]
    with torch.no_grad():
        wanted = model(x)
        energy = float((wanted - wanted.mean(0)).square().sum())
        losses = []
        for unit in range(5):
            receipt = graph.apply(Shrink("0", remove=[unit]), compensate=x)
            losses.append(float((model(x) - wanted).square().sum()) / energy)
            receipt.undo()
    cheapest = min(range(5), key=losses.__getitem__)
    assert int(scores.argmin()) == cheapest
    assert float(scores[cheapest]) == pytest.approx(losses[cheapest], rel=0.1)


def test_what_only_a_recurrent_layer_reads_has_no_activation_to_score() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True)
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.lstm(self.first(x))[0][:, -1])
            return y

    x = torch.randn(4, 6, 3)
    graph = trace(Recurrent(), x)
    with pytest.raises(CriterionError, match="'first' is read by no linear layer"):
        unit_scores(graph, "activation", [(x, torch.zeros(4))])
    assert set(unit_scores(graph, "magnitude")) == {"first", "lstm"}


def test_activation_of_weights() -> None:
    """x² is 1/2 and 5/2 on average, h² 113/2 and 13/2; x0 is on in one of two samples."""
    energy = weight_scores(two_layers(), "activation", [(X, Y)])
    assert energy["0.weight"].tolist() == [[9 / 2, 16 * 5 / 2], [1 / 2, 0.0]]
    assert energy["2.weight"].tolist() == [[4 * 113 / 2, 13 / 2]]
    nonzero = weight_scores(two_layers(), activation(measure="nonzero"), [(X[:1], Y), (X[1:], Y)])
    assert nonzero["0.weight"].tolist() == [[0.5, 1.0], [0.5, 0.0]]
    assert nonzero["2.weight"].tolist() == [[1.0, 1.0]]


def test_reconstruction_of_weights_is_what_least_squares_leaves() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 4))
    x = torch.randn(2000, 6)
    graph = trace(model, x)
    scores = weight_scores(graph, reconstruction(weighted=False), [(x, torch.zeros(2000))])
    with torch.no_grad():
        wanted, hidden = model(x), model[:2](x)
    hidden, wanted = hidden - hidden.mean(0), wanted - wanted.mean(0)

    def lost(kept: list[int], output: int) -> float:
        inputs, y = hidden[:, kept], wanted[:, output : output + 1]
        fitted = inputs @ torch.linalg.lstsq(inputs, y).solution
        return float((y - fitted).square().mean())

    energy = float(wanted.square().mean(0).sum())
    # Rows of three go weight by weight, and a score is what the dearest of them has added.
    for output in range(4):
        kept, expected, before, dearest = [0, 1, 2], {}, 0.0, 0.0
        while kept:
            after = {k: lost([other for other in kept if other != k], output) for k in kept}
            cheapest = min(after, key=after.__getitem__)
            dearest = max(dearest, after[cheapest] - before)
            expected[cheapest], before = dearest, after[cheapest]
            kept.remove(cheapest)
        found = scores["2.weight"][output].tolist()
        assert found == pytest.approx([expected[k] / energy for k in range(3)], rel=0.05)


@pytest.mark.parametrize("score", [unit_scores, weight_scores])
def test_reconstruction_does_not_depend_on_the_scale_of_what_is_read(score: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 3))
    x, y = torch.randn(300, 6), torch.randint(3, (300,))
    for weighted in (True, False):
        expected = score(trace(model, x), reconstruction(weighted=weighted), [(x, y)], loss=_LOSS)
        scaled = copy.deepcopy(model)
        factors = torch.logspace(-2, 2, 12)
        with torch.no_grad():
            scaled.get_parameter("0.weight").mul_(factors[:, None])
            scaled.get_parameter("2.weight").div_(factors)
        found = score(trace(scaled, x), reconstruction(weighted=weighted), [(x, y)], loss=_LOSS)
        name = "0" if score is unit_scores else "2.weight"
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=0)


def test_reconstruction_of_a_unit_that_is_never_on_is_next_to_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model.get_parameter("0.bias")[2] = -100
        model.get_parameter("2.weight")[:, 2] = 30
    x = torch.randn(300, 6)
    for weighted in (True, False):
        batches = [(x, torch.randint(3, (len(x),)))]
        criterion = reconstruction(weighted=weighted)
        scores = unit_scores(trace(model, x), criterion, batches, loss=_LOSS)["0"]
        assert int(scores.argmin()) == 2
        assert scores[2] < 0.1 * scores.sort().values[1]
    nn.init.constant_(model.get_parameter("0.bias"), -100)  # all of them
    scores = unit_scores(trace(model, x), reconstruction(weighted=False), batches)["0"]
    assert scores.tolist() == [0] * 5


def test_reconstruction_lets_one_of_two_equal_weights_go() -> None:
    model, x = _copies()
    batches = [(x, torch.randint(3, (len(x),)))]
    scores = weight_scores(trace(model, x), "reconstruction", batches, loss=F.cross_entropy)
    for _, cheap, dear, _ in scores["2.weight"].sort(1).values.tolist():
        # Cheap are the weight of the unit that hardly does anything and one of the two.
        assert cheap < 0.2 * dear


def test_weights_that_nothing_shows_are_named() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 4))
            self.last = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(x + self.position)
            return y

    x = torch.randn(3, 4)
    with pytest.raises(CriterionError, match="'position' belongs to no linear layer"):
        weight_scores(trace(Positions(), x), "activation", [(x, torch.zeros(3))])


@pytest.mark.parametrize("name", ["fpgm", "batchnorm_scale"])
def test_units_only(name: str) -> None:
    with pytest.raises(TypeError, match="scores units only"):
        weight_scores(two_layers(), name, [(X, Y)], loss=F.mse_loss)


def test_data_that_are_missing_are_asked_for() -> None:
    for name in ("activation", {"name": "reconstruction", "weighted": False}):
        with pytest.raises(MissingGradientError, match="pass batches="):
            unit_scores(two_layers(), name)
    for name in ("hessian", "gradient", "reconstruction"):
        with pytest.raises(MissingGradientError, match="pass batches=… and loss=…"):
            unit_scores(two_layers(), name, [(X, Y)])
    for make in (gradient, batchnorm_scale):
        with pytest.raises(UnknownNameError, match="aggregate"):
            make(aggregate="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
def test_aggregates_over_slices(aggregate: str) -> None:
    # Unit 0: weights 3 and 4, bias 0, read by 2. Unit 1: 1 and 0, bias 2, read by -1.
    per_slice = [[7.0, 1.0], [0.0, 2.0], [2.0, 1.0]]
    expected = {
        "sum": [9.0, 4.0],
        "mean": [3.0, 4 / 3],
        "max": [7.0, 2.0],
    }[aggregate]
    criterion = {"name": "magnitude", "order": 1, "aggregate": aggregate}
    assert values(unit_scores(two_layers(), criterion)["0"]) == pytest.approx(expected, abs=1e-4)
    assert [sum(column) for column in zip(*per_slice, strict=True)] == [9.0, 4.0]


@pytest.mark.parametrize("looks_at_values", [False, True])
def test_gradients_of_single_samples(looks_at_values: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
            self.last = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            if looks_at_values and float(x.sum()) > 1e9:
                x = 2 * x
            y: Tensor = self.last(self.layers(x).flatten(1))
            return y

    torch.manual_seed(0)
    model = Network()
    x, y = torch.randn(7, 1, 4, 4), torch.randint(2, (7,))
    found = [*sample_gradients(model, [(x[:3], y[:3]), (x[3:], y[3:])], F.cross_entropy)]
    together = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    model.eval()
    for sample, (one, label) in enumerate(zip(x, y, strict=True)):
        loss = F.cross_entropy(model(one[None]), label[None])
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), wanted in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(together[name][sample], wanted)


@pytest.mark.parametrize("most_samples", [1, 3, 64])
@pytest.mark.parametrize("chunk_bytes", [1, 300, 2**27])
def test_samples_come_in_parts_that_fit_into_memory(
    most_samples: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynopt_ray.criteria.gradients._MOST_SAMPLES", most_samples)
    monkeypatch.setattr("dynopt_ray.criteria.gradients._CHUNK_BYTES", chunk_bytes)
    model = nn.Linear(9, 1)  # 40 bytes, of which 7 fit into 300
    x, y = torch.randn(20, 9), torch.randn(20, 1)
    parts = [*sample_gradients(model, [(x[:11], y[:11]), (x[11:], y[11:])], F.mse_loss)]
    size = max(1, min(most_samples, chunk_bytes // 40))
    wanted = [*([size] * (11 // size)), 11 % size, *([size] * (9 // size)), 9 % size]
    assert [len(part["bias"]) for part in parts] == [number for number in wanted if number]
    found = torch.cat([part["weight"] for part in parts])
    torch.testing.assert_close(found[:, 0], 2 * (model(x) - y).detach() * x)


def test_weights_of_many_rows_are_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 7)), torch.randn(100, 5)
    graph, batches = trace(model, x), [(x, torch.randint(7, (100,)))]
    wanted = weight_scores(graph, "reconstruction", batches, loss=_LOSS)
    for numbers in (1, 2 * 25, 3 * 16):
        monkeypatch.setattr("dynopt_ray.criteria.reconstruction_errors._MOST_NUMBERS", numbers)
        found = weight_scores(graph, "reconstruction", batches, loss=_LOSS)
        for name, scores in wanted.items():
            torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-9)


def test_scores_do_not_depend_on_batches() -> None:
    x, y = torch.randn(40, 2), torch.randn(40, 1)
    for name in ("hessian", "activation", "reconstruction", "gradient"):
        scores = []
        for size in (40, 7, 1):
            batches = list(zip(torch.split(x, size), torch.split(y, size), strict=True))
            scores.append(unit_scores(two_layers(), name, batches, loss=F.mse_loss)["0"])
        for one, other in itertools.pairwise(scores):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
