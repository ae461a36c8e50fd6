"""Compensation: exact where the rest can express what goes, least squares where it cannot."""

import copy
import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import DataError, EditError
from dynopt_ray.structure import Graph, Shrink, masked_ridge_solve, ridge_solve, trace
from tests.structure.zoo import NETWORKS, trained


class Times(nn.Module):
    """Multiplies with a weight of its own, in a way of the test's own."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.bias = nn.Parameter(torch.randn(3))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight) + self.bias


def into(consumer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), consumer)


def transposed(*args: Any, **kwargs: Any) -> nn.Module:
    return conv_into(nn.ConvTranspose2d(*args, **kwargs))


CONSUMERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), (5,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3, bias=False)), (5,)),
    "stride": (lambda: conv_into(nn.Conv2d(8, 3, 3, stride=2)), (2, 9, 9)),
    "padding": (lambda: conv_into(nn.Conv2d(8, 3, 3, padding=1)), (2, 9, 9)),
    "same": (lambda: conv_into(nn.Conv2d(8, 3, 3, padding="same")), (2, 9, 9)),
    "dilation": (lambda: conv_into(nn.Conv2d(8, 3, 3, dilation=2)), (2, 9, 9)),
    "groups": (lambda: conv_into(nn.Conv2d(8, 4, 3, groups=2)), (2, 9, 9)),
    "reflect": (
        lambda: conv_into(nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect")),
        (2, 9, 9),
    ),
    "batch norm": (
        lambda: conv_into(nn.Conv2d(8, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        (2, 9, 9),
    ),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8 * 49, 3)),
        (2, 9, 9),
    ),
    "series": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.Conv1d(8, 3, 4, padding=2)),
        (2, 20),
    ),
    "matrix product": (lambda: into(Times(torch.matmul, 8, 3)), (5,)),
    "from the left no bias": (
        lambda: into(Times(lambda x, w: (w @ x.mT).mT, 3, 8)),
        (5,),
    ),
    "einsum no bias": (
        lambda: into(Times(lambda x, w: torch.einsum("bi,hio->bho", x, w), 2, 8, 3)),
        (5,),
    ),
    "batched product no bias": (
        lambda: into(Times(lambda x, w: torch.bmm(x.expand(2, -1, -1), w), 2, 8, 3)),
        (5,),
    ),
    "transposed pad": (lambda: transposed(8, 3, 3, padding=1), (2, 7, 7)),
    "transposed stride pad": (
        lambda: transposed(8, 3, 3, stride=2, padding=1, output_padding=1),
        (2, 7, 7),
    ),
    "transposed dilation pad": (lambda: transposed(8, 3, (3, 2), stride=3, dilation=2), (2, 7, 7)),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(2, 8, 1), nn.Conv3d(8, 3, 2, padding=1)),
        (2, 4, 4, 4),
    ),
}


def conv_into(*consumer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), *consumer)


@pytest.mark.parametrize("name", CONSUMERS)
def test_units_that_others_can_express_are_removed_without_loss(name: str) -> None:
    """Units 2 and 5 (4 and 6 where groups pair them) are sums of others, up to a constant."""
    torch.manual_seed(0)
    build, shape = CONSUMERS[name]
    model = build().eval()
    first = next(iter(model.children()))
    assert isinstance(first, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    with torch.no_grad():
        assert first.bias is not None
        constant = 0.0 if "no bias" in name else 0.7
        for dependent in (2, 6) if name == "groups" else (2, 5):
            base = 4 * (dependent // 4) if name == "groups" else 0
            first.weight[dependent] = first.weight[base] - 2 * first.weight[base + 1]
            first.bias[dependent] = first.bias[base] - 2 * first.bias[base + 1] + constant
            if "pad" in name or name in ("same", "series", "volume"):
                # A constant is not constant where zeros were padded.
                first.bias[dependent] -= constant
    batches = [torch.randn(16, *shape) for _ in range(6)]
    before = model(batches[0])
    graph = trace(model, batches[0])
    remove = [2] if name == "groups" else [2, 5]
    graph.apply([Shrink("0", remove=remove)], compensate=batches)
    error = (model(batches[0]) - before).square().mean() / before.var()
    assert error < 2e-3  # what the ridge costs; without compensation it is about 1


class Along(nn.Module):
    """Adds a vector along the last dimension, which is as long as there are channels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.vector


@pytest.mark.parametrize(
    ("consumer", "shape", "untouched"),
    [
        (lambda: (nn.Conv2d(8, 4, 3, bias=False), Along(4)), (2, 6, 6), "2.vector"),
        (lambda: (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (2, 6, 6), "2.running_mean"),
    ],
)
def test_only_what_lies_along_the_outputs_takes_up_their_constant(
    consumer: Callable[[], Any], shape: tuple[int, ...], untouched: str
) -> None:
    """Vectors of the right length along another dimension are no biases."""
    torch.manual_seed(0)
    into_channels = untouched == "2.vector"
    first = nn.Conv2d(2, 8, 3, padding=1) if into_channels else nn.Linear(6, 6)
    model = nn.Sequential(first, *consumer()).eval()
    batches = torch.randn(64, *shape) if into_channels else torch.randn(64, 4, 6)
    before = model.state_dict()[untouched].clone()
    receipt = trace(model, batches).apply([Shrink("0", remove=[1])], compensate=batches)
    assert receipt.refitted == ("1.weight",)
    assert torch.equal(model.state_dict()[untouched], before)


def test_is_the_least_squares_fit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    inputs = torch.randn(4000, 6)
    hidden = model[:2](inputs).detach()
    target = model(inputs).detach()
    kept = [0, 1, 4, 5, 7, 9]
    trace(model, inputs).apply([Shrink("0", keep=kept)], compensate=torch.split(inputs, 500))
    design = torch.cat([hidden[:, kept], torch.ones(4000, 1)], 1).double()
    best = torch.linalg.lstsq(design, target.double()).solution
    limit = (design @ best - target).square().mean()
    reached = (model(inputs) - target).square().mean()
    assert reached <= limit * 1.01


@pytest.mark.filterwarnings("ignore:compensate. .* cannot be refitted")
@pytest.mark.parametrize("name", NETWORKS)
def test_lowers_the_error_of_every_network(name: str) -> None:
    plain, inputs = trained(name)
    refitted = copy.deepcopy(plain)
    many = torch.cat([NETWORKS[name].inputs() for _ in range(24)])
    target = plain(inputs)
    errors = []
    for model, compensate in ((plain, None), (refitted, [many, inputs])):
        graph = trace(model, inputs)
        graph.apply(halve(graph), compensate=compensate)
        errors.append((model(inputs) - target).square().mean().item())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("num_samples", [1, 2, 8])
def test_few_samples_help_more_than_they_harm(num_samples: int) -> None:
    ratios = []
    for name, seed in itertools.product(["mlp", "vgg", "resnet", "attention"], range(3)):
        plain, inputs = trained(name, seed)
        refitted = copy.deepcopy(plain)
        target = plain(inputs)
        errors = []
        for model, compensate in ((plain, None), (refitted, NETWORKS[name].inputs()[:num_samples])):
            graph = trace(model, inputs)
            graph.apply(halve(graph), compensate=compensate)
            errors.append((model(inputs) - target).square().mean().item())
        ratios.append(errors[1] / errors[0])
    # One network may lose by it: so few rows say little, and rounding tips the balance.
    assert statistics.geometric_mean(ratios) < 0.8
    assert sum(ratio > 1.1 for ratio in ratios) <= len(ratios) // 4


def halve(graph: Graph) -> list[Shrink]:
    return [Shrink(g.name, remove=range(g.width // 2)) for g in graph if g.width > 1]


def test_statistics_do_not_depend_on_how_samples_are_batched() -> None:
    weights = []
    for size in (50, 400):
        model, _ = trained("mlp")
        inputs = torch.randn(400, 7, generator=torch.Generator().manual_seed(0))
        trace(model, inputs).apply(
            [Shrink("0", remove=[1, 2])], compensate=torch.split(inputs, size)
        )
        weights.append(model.get_parameter("2.weight").detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_mode_and_statistics_of_the_network_are_left_alone() -> None:
    model, inputs = trained("vgg")
    model.train()
    mean = model.get_buffer("4.running_mean").clone()
    trace(model, inputs).apply([Shrink("3", remove=[1])], compensate=inputs)
    assert model.training
    assert torch.equal(model.get_buffer("4.running_mean"), mean[[0, 2, 3, 4, 5, 6, 7]])


def test_silent_inputs_are_no_obstacle() -> None:
    model, inputs = trained("mlp")
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
        model.get_parameter("0.bias").fill_(-1)
    target = model(inputs)
    trace(model, inputs).apply([Shrink("0", remove=[0, 3])], compensate=inputs)
    torch.testing.assert_close(model(inputs), target)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([[torch.ones(4, 7)]], "batch 0 is a list"),
        ([torch.full((4, 7), torch.nan)], "not finite"),
        ([torch.ones(4, 7), torch.ones(4, 7).index_fill(0, torch.tensor(2), -torch.inf)], "finite"),
        ([1e25 * torch.randn(4, 7)], "'2.weight' cannot be refitted: .* too large to be squared"),
    ],
)
def test_bad_batches_are_refused_and_nothing_changes(batches: Any, message: str) -> None:
    model, inputs = trained("mlp")
    before: Tensor = model(inputs)
    graph = trace(model, inputs)
    with pytest.raises(EditError, match=message):
        graph.apply([Shrink("0", remove=[0])], compensate=batches)
    assert torch.equal(model(inputs), before)
    assert graph.widths == NETWORKS["mlp"].widths


def test_what_is_kept_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for most_bytes in (2**28, 1):
        monkeypatch.setattr("dynopt_ray.structure.refit.compensation._MOST_BYTES", most_bytes)
        model, inputs = trained("resnet")
        graph = trace(model, inputs)
        graph.apply(halve(graph), compensate=[inputs, *torch.split(inputs, 3)])
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_batches_beyond_what_is_enough_are_not_read() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval()
    batches = [torch.randn(256, 2, 8, 8) for _ in range(12)]
    graph = trace(model, batches[0])
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    graph.apply(Shrink("0", remove=[1, 6]), compensate=batches)
    assert len(passes) == 2 * 4  # 16 rows of each of 1024 samples, before and after


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["cross", "second"])
def test_regressions_on_what_is_not_finite_are_refused(part: str, broken: float) -> None:
    """A search for a ridge with which they can be solved would never end."""
    moments = {"cross": torch.ones(1, 2, 3).double(), "second": torch.eye(3).double()[None]}
    moments[part][0, 1, 1] = broken
    kept = torch.tensor([[[True, False, True], [False, True, True]]])
    for solve in (ridge_solve, partial(masked_ridge_solve, kept_GOK=kept)):
        with pytest.raises(DataError, match="not finite"):
            solve(*moments.values())


def test_a_ridge_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        ridge_solve(torch.ones(1, 2, 3).double(), 1e308 * torch.eye(3).double()[None])


@pytest.mark.parametrize(
    ("reader", "left"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), 2),
        (lambda: nn.LSTM(8, 3, batch_first=True), 1),
        (lambda: Twice(nn.Bilinear(8, 8, 3)), 1),
    ],
)
def test_readers_that_cannot_be_refitted_are_named(
    reader: Callable[[], nn.Module], left: int
) -> None:
    model = nn.Sequential(nn.Linear(5, 8), reader())
    x = torch.randn(20, 5)
    graph = trace(model, x)
    edit = Shrink("0", remove=[0, 1])
    with pytest.warns(UserWarning, match="cannot be refitted") as caught:
        receipt = graph.apply(edit, compensate=x)
    assert caught[0].filename == __file__
    assert receipt.refitted == ()
    assert 0 < len(receipt.not_refitted) <= left
    assert all(name.startswith("1.") for name in receipt.not_refitted)
    receipt.undo()
    assert graph.apply(edit).not_refitted == ()


class Twice(nn.Module):
    """Gives a layer of two inputs the same one twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x, x)
        return out
