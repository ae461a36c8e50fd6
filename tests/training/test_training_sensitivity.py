"""Each row is a cut made by hand on a copy; the network itself is afterwards as it was."""

import copy
import doctest
import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.criteria import unit_scores
from dynopt_ray.errors import DivergedError, EditError, UnknownNameError
from dynopt_ray.structure import Graph, Grow, Mask, Shrink, mask_of, measure, trace
from dynopt_ray.tasks import Task
from dynopt_ray.training import prune, sensitivity
from tests.structure.editing import assert_same, everything, step
from tests.structure.test_faults import interrupted_line, without_spent_modes
from tests.training.test_training_widths import Aligned

Trained = Callable[[], tuple[nn.Module, torch.optim.Adam]]
CURVE = ["loss", "metric", "confidence"]


class Counting(nn.Module):
    """Counts its passes, also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, 3),
        Counting(),
    )


@pytest.fixture
def images() -> Task:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(240) % 3
    x = torch.randn(240, 1, 6, 6, generator=generator) + 0.7 * y[:, None, None, None]
    return Task.from_arrays(
        model=network, train=(x[:160], y[:160]), validation=(x[160:], y[160:]), batch_size=40
    )


def at(curves: pd.DataFrame, group: str, fraction: float) -> "pd.Series[Any]":
    rows = curves[(curves["group"] == group) & (curves["remove_fraction"] == fraction)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("compensate", [True, None])
def test_a_row_is_a_cut_by_hand_of_a_copy(images: Task, compensate: bool | None) -> None:
    model = images.new_model(seed=0)
    images.train_steps(model, torch.optim.Adam(model.parameters(), lr=0.01), 20)
    curves = sensitivity(model, images, fractions=[0.35, 0.7], compensate=compensate)
    assert curves["group"].tolist() == ["0"] * 3 + ["3"] * 3
    # All rows in one batch: calibration joins four batches of the task.
    generator = torch.Generator().manual_seed(0)
    rows = [x for x, _ in images.batches("train", 160, generator=generator)]
    for group, fraction, number in [("0", 0.35, 2), ("0", 0.7, 4), ("3", 0.35, 2), ("3", 0.7, 5)]:
        cut = copy.deepcopy(model)
        graph = trace(cut, images.example_inputs())
        least = unit_scores(graph, "magnitude")[group].argsort()[:number].tolist()
        graph.apply(Shrink(group, remove=least), compensate=rows if compensate else None)
        row, metrics = at(curves, group, fraction), images.evaluate(cut)
        cost = measure(cut, images.example_inputs()[:1])  # type: ignore[index]
        assert row[CURVE].tolist() == [metrics.loss, metrics.metric, metrics.confidence]
        assert (row["width"], row["num_removed"]) == (graph[group].width, number)
        assert row[["params", "nonzero", "flops", "bytes"]].tolist() == [
            cost.params,
            cost.nonzero,
            cost.flops,
            cost.bytes,
        ]
    start = images.evaluate(model)
    for group in ("0", "3"):
        row = at(curves, group, 0.0)
        assert row[CURVE].tolist() == [start.loss, start.metric, start.confidence]
        assert row["num_removed"] == 0


def test_prune_to_one_of_the_widths_makes_the_same_cut(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    row = at(sensitivity(model, blobs, fractions=[0.5], seed=4), "2", 0.5)
    after = prune(model, blobs, target={"2": 4}, seed=4).after
    assert row["loss"] == after.validation.loss
    assert row["flops"] == after.cost.flops


def test_weights_are_masked_beside_those_masked_before(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    weight = model.get_parameter("2.weight")
    graph = trace(model, blobs.example_inputs())
    before = torch.ones(8, 12, dtype=torch.bool)
    before[:, 0] = False
    graph.apply(Mask("2.weight", keep=before))
    curves = sensitivity(graph, blobs, granularity="weight", fractions=[0.5], compensate=None)
    row = at(curves, "2.weight", 0.5)
    cut = copy.deepcopy(model)
    smallest = weight.detach().abs()[:, 1:].flatten().kthvalue(44).values
    with torch.no_grad():
        cut.get_parameter("2.weight").mul_(weight.abs() > smallest)
    assert row["loss"] == blobs.evaluate(cut).loss
    assert (row["width"], row["num_removed"]) == (44, 44)
    assert torch.equal(mask_of(weight), before)  # type: ignore[arg-type]


def disturbed(images: Task) -> tuple[nn.Module, torch.optim.Adam, Graph]:
    """A network in the middle of training, with a mask, gradients and modules in either mode."""
    model = images.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    graph = trace(model, images.example_inputs())
    graph.apply(Mask("3.weight", keep=torch.rand(8, 6, 3, 3) > 0.3), optimizer=optimizer)
    step(model, images.arrays("train")[0][:20], optimizer)
    model.train()
    model.get_submodule("1").eval()
    torch.manual_seed(7)
    return model, optimizer, graph


@pytest.mark.parametrize("granularity", ["unit", "weight"])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_nothing_has_changed_afterwards(images: Task, granularity: Any, criterion: str) -> None:
    model, optimizer, graph = disturbed(images)
    before = everything(model, optimizer, graph)
    sensitivity(graph, images, granularity=granularity, criterion=criterion, fractions=[0.2, 0.5])
    assert_same(everything(model, optimizer, graph), before)


def test_what_is_done_next_is_what_would_have_been(images: Task) -> None:
    states = []
    for is_measured in (True, False):
        torch.manual_seed(1)
        model, optimizer, graph = disturbed(images)
        if is_measured:
            sensitivity(graph, images)
        graph.apply(Grow("0", 2), optimizer=optimizer)
        images.train_steps(model, optimizer, 3)
        states.append(model.state_dict())
    assert all(map(torch.equal, states[0].values(), states[1].values()))


@pytest.mark.parametrize(
    ("end", "error"), [(KeyboardInterrupt("stop"), KeyboardInterrupt), (math.inf, DivergedError)]
)
def test_the_network_is_whole_after_an_end_in_the_middle(
    images: Task, end: Any, error: type[BaseException]
) -> None:
    evaluations = itertools.count()

    def metric(output: Tensor, targets: Tensor) -> float:
        if next(evaluations) < 4:
            return (output.argmax(1) == targets).double().mean().item()
        if isinstance(end, BaseException):
            raise end
        return float(end)

    failing = Task.from_arrays(
        model=network,
        train=images.arrays("train"),
        validation=images.arrays("validation"),
        metric=metric,
    )
    model, optimizer, graph = disturbed(images)
    before = everything(model, optimizer, graph)
    with pytest.raises(error, match=r"^stop$|metric .* inf") as caught:
        sensitivity(graph, failing, fractions=[0.2, 0.4, 0.6])
    assert_same(everything(model, optimizer, graph), before)
    if error is DivergedError:
        assert caught.value.__notes__ == ["The cut removed 1 of the units of '3'."]


def test_the_network_is_whole_whenever_ctrl_c_comes(images: Task) -> None:
    model, optimizer, graph = disturbed(images)
    before = everything(model, optimizer, graph)
    for count in itertools.count():
        try:
            with interrupted_line(11_003 * count, since="sensitivity"):
                sensitivity(graph, images, fractions=[0.2, 0.5])
        # Torch's modes may trip over an interrupt within them, and so hide it.
        except (KeyboardInterrupt, EditError):
            assert_same(without_spent_modes(everything(model, optimizer, graph)), before)
        else:
            break
    assert count > 10


@contextmanager
def interrupted_end_of_cut(number: int) -> Iterator[None]:
    """Ctrl-C before the n-th cut begins to be undone."""
    ends = itertools.count()

    def on_call(frame: FrameType, *_: Any) -> None:
        if frame.f_code.co_qualname == "_GeneratorContextManager.__exit__":
            is_cut = frame.f_locals["self"].gen.__name__ == "undone"
            if is_cut and next(ends) == number:
                raise KeyboardInterrupt("before the end of a cut")

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_cut_whose_undoing_is_interrupted_is_undone(images: Task) -> None:
    model, optimizer, graph = disturbed(images)
    before = everything(model, optimizer, graph)
    for number in range(5):  # of four cuts, and of all
        wanted = pytest.raises(KeyboardInterrupt, match="before the end of a cut")
        with wanted, interrupted_end_of_cut(number):
            sensitivity(graph, images, fractions=[0.2, 0.5])
        assert_same(everything(model, optimizer, graph), before)


def test_fractions_that_come_to_the_same_number_are_measured_once(
    blobs: Task, trained: Trained
) -> None:
    evaluations: list[int] = []

    def metric(output: Tensor, targets: Tensor) -> float:
        evaluations.append(len(targets))
        return -F.cross_entropy(output, targets).item()

    counting = Task.from_arrays(
        model=blobs.model,
        train=blobs.arrays("train"),
        validation=blobs.arrays("validation"),
        metric=metric,
    )
    fractions = [0.51, 0.01, 0.25, 0.2, 0.02, 0.5]
    curves = sensitivity(trained()[0], counting, fractions=fractions, groups="0")
    assert curves["remove_fraction"].tolist() == [0.0, *sorted(fractions)]
    assert curves["num_removed"].tolist() == [0, 0, 0, 2, 3, 6, 6]
    assert curves["width"].tolist() == [12, 12, 12, 10, 9, 6, 6]
    assert len(evaluations) == 4
    assert curves["metric"].nunique() == 4


class Squeezed(nn.Module):
    """Its width must not be 1."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).squeeze())
        return y


def test_groups_keep_their_least_width_and_step(blobs: Task) -> None:
    torch.manual_seed(0)
    curves = sensitivity(Aligned(), blobs, fractions=[0.3, 0.34, 0.7, 0.99])
    assert curves["width"].tolist() == [12, 12, 8, 4, 4]
    curves = sensitivity(Squeezed(), blobs, fractions=[0.5, 0.9])
    assert curves["width"].tolist() == [3, 2, 2]
    assert curves["num_removed"].tolist() == [0, 1, 1]
    weights = sensitivity(Squeezed(), blobs, granularity="weight", fractions=[0.99999])
    assert weights["width"].tolist() == [12, 1, 9, 1]


def test_groups_are_measured_in_forward_order(blobs: Task, trained: Trained) -> None:
    model, _ = trained()
    both = sensitivity(model, blobs, groups=["2", "0", "2"], fractions=[0.5])
    assert both.equals(sensitivity(model, blobs, fractions=[0.5]))
    assert set(sensitivity(model, blobs, groups="2", fractions=[0.5])["group"]) == {"2"}
    fixed = trace(model, blobs.example_inputs(), fixed=["0"])
    assert set(sensitivity(fixed, blobs, fractions=[0.5])["group"]) == {"2"}


@pytest.mark.parametrize(("criterion", "compensate"), [("taylor", None), ("magnitude", True)])
def test_the_same_seed_measures_the_same_whatever_the_process_drew_before(
    trained: Trained, criterion: str, compensate: bool | None
) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5000, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    task = Task.from_arrays(model=nn.Identity, train=(x, y), validation=(x[:500], y[:500]))
    model, _ = trained()
    options: dict[str, Any] = {"criterion": criterion, "compensate": compensate}
    curves = []
    for draws, seed in ((0, 3), (5, 3), (5, 4)):
        torch.rand(draws)
        curves.append(sensitivity(model, task, fractions=[0.4, 0.6], seed=seed, **options))
    assert curves[0].equals(curves[1])
    assert not curves[0]["loss"].equals(curves[2]["loss"])


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"task": "blobs"}, TypeError, r"task is 'blobs'; pass a Task"),
    ({"fractions": []}, ValueError, "fractions is empty"),
    ({"fractions": [0.5, 1.0]}, ValueError, r"fractions is 1\.0; it must lie between 0 .* and 1"),
    ({"fractions": [0]}, ValueError, "fractions is 0; it must lie"),
    ({"fractions": [float("nan")]}, ValueError, "fractions is nan; it must lie"),
    ({"fractions": ["half"]}, TypeError, "fractions is 'half'; it must be a number"),
    ({"fractions": [True]}, TypeError, "fractions is True"),
    ({"fractions": 0.5}, TypeError, r"fractions is 0\.5; pass numbers such as"),
    ({"fractions": "0.5"}, TypeError, r"fractions is '0\.5'"),
    ({"granularity": "units"}, UnknownNameError, "no granularity 'units'. Did you mean 'unit'"),
    ({"granularity": "2:4"}, ValueError, "'2:4' determines how much is removed, .* use 'weight'"),
    ({"criterion": "magnitud"}, UnknownNameError, "Did you mean 'magnitude'"),
    ({"groups": ["0", "22"]}, UnknownNameError, "no width group '22'. Did you mean '2'"),
    ({"groups": "4"}, EditError, "'4' cannot be resized"),
    ({"groups": []}, EditError, "groups is empty"),
    (
        {"granularity": "weight", "groups": "2.weigth"},
        UnknownNameError,
        "no parameter of weights '2.weigth'. Did you mean '2.weight'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_be_measured_is_refused_before_the_network_runs(
    blobs: Task, trained: Trained, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def metric(output: Tensor, targets: Tensor) -> float:
        raise AssertionError(f"evaluated on {len(output)} of {len(targets)} rows")

    data = {split: blobs.arrays(split) for split in ("train", "validation")}
    silent: Any = Task.from_arrays(model=blobs.model, metric=metric, **data)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        sensitivity(trained()[0], **{"task": silent, **options})


def test_a_network_without_groups_is_refused(blobs: Task) -> None:
    with pytest.raises(EditError, match="no width group of Linear can be cut"):
        sensitivity(nn.Linear(4, 3), blobs)


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(
        importlib.import_module("dynopt_ray.training.allocation.sensitivities")
    )
    assert results.attempted
    assert not results.failed
