"""Parts of data sets as tasks, and the transformer on digits."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets  # type: ignore[import-untyped]

from dynopt_ray.errors import DataError, SpecError
from dynopt_ray.structure import Grow, Mask, Shrink, trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.tasks.builtin import fashion_mnist
from dynopt_ray.tasks.builtin.subsets import chosen_rows
from dynopt_ray.tasks.builtin.transformers import Attention
from dynopt_ray.training import Budget, allocate, prune, sensitivity

DIGITS: Any = datasets.load_digits()

debian = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_DIR.is_dir(), reason="dataset-fashion-mnist is not installed"
)


def labels_of(task: Task) -> torch.Tensor:
    return torch.cat([task.arrays(split)[1] for split in task.splits])


def test_chosen_rows_keep_their_order_and_number_classes_as_asked() -> None:
    labels = np.array([5, 3, 5, 0, 3, 5])
    chosen = chosen_rows(labels, rows=[1, 6], classes=[5, 3])
    assert chosen.rows.tolist() == [1, 2, 4, 5]
    assert chosen.labels.tolist() == [1, 0, 1, 0]
    everything = chosen_rows(labels, rows=None, classes=None)
    assert everything.rows.tolist() == list(range(6))
    assert everything.labels.tolist() == [2, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn", "digits-transformer"])
def test_digits_of_a_range_and_of_some_classes(name: str) -> None:
    task = load_task(name, {"rows": [100, 700], "classes": [8, 3, 1]})
    digits = DIGITS.target[100:700]
    counts = [int((digits == digit).sum()) for digit in (8, 3, 1)]
    assert labels_of(task).bincount().tolist() == counts
    assert task.num_classes == 3


def test_digits_outside_the_range_are_in_no_split() -> None:
    task = load_task("digits-mlp", {"rows": [1000, 1200]})
    x = torch.cat([task.arrays(split)[0] for split in task.splits])
    pixels = ((x - x.min()) / (x.max() - x.min()) * 16).round()
    expected = torch.from_numpy(DIGITS.data[1000:1200]).float()
    assert torch.equal(_sorted(pixels), _sorted(expected))


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(sorted(map(tuple, rows.tolist()))))


@debian
def test_a_part_of_fashion_mnist() -> None:
    options = {"rows": [1_000, 4_000], "classes": [0, 9], "hidden": [16]}
    task = load_task("fashion-mnist-mlp", options)
    clothes = fashion_mnist.read_fashion_mnist()[fashion_mnist.FILES[1]][1_000:4_000]
    num_rows = int(np.isin(clothes, [0, 9]).sum())
    assert task.num_classes == 2
    assert len(task.arrays("train")[1]) == num_rows - round(num_rows / 6)
    assert len(task.arrays("validation")[1]) == round(num_rows / 6)
    assert task.arrays("test")[1].bincount().tolist() == [1_000, 1_000]
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    task.train_steps(model, optimizer, 50, generator=torch.Generator().manual_seed(0))
    assert task.evaluate(model, "test").metric > 0.95


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": [5]}, SpecError, r"rows is \[5\]; give \[first, end\] with 0 <= first < end"),
        ({"rows": [9, 9]}, SpecError, "first < end <= 1,797"),
        ({"rows": [0, 1_798]}, SpecError, "first < end <= 1,797"),
        ({"rows": 900}, SpecError, "rows must be a list of whole numbers such as"),
        ({"rows": [0.5, 9]}, SpecError, "rows must be a list of whole numbers such as"),
        ({"classes": [3]}, SpecError, r"classes is \[3\]; give at least two different ones of 0"),
        ({"classes": [3, 3]}, SpecError, "at least two different ones"),
        ({"classes": [3, 10]}, SpecError, "at least two different ones of 0 … 9"),
        ({"classes": 3}, SpecError, "classes must be a list of whole numbers"),
        ({"rows": [0, 5], "classes": [2, 7]}, DataError, "no row from 0 to 5 has class 7"),
    ],
)
def test_impossible_parts_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_task("digits-mlp", options)


@pytest.fixture(scope="module")
def transformer_task() -> Task:
    return load_task("digits-transformer", {"width": 16, "feedforward": 24})


@pytest.fixture(scope="module")
def trained_state(transformer_task: Task) -> dict[str, torch.Tensor]:
    model = transformer_task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    transformer_task.train_steps(model, optimizer, 300, generator=torch.Generator().manual_seed(0))
    return model.state_dict()


@pytest.fixture
def transformer(transformer_task: Task, trained_state: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = transformer_task.new_model(seed=0)
    model.load_state_dict(trained_state)
    return model


def test_the_transformer_learns(transformer_task: Task, transformer: torch.nn.Module) -> None:
    assert transformer_task.evaluate(transformer).metric > 0.9


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = Attention(12, num_heads=3, head_size=4)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    layers = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0])


def test_the_transformer_knows_positions(
    transformer_task: Task, transformer: torch.nn.Module
) -> None:
    rows = transformer_task.arrays("validation")[0][:4]
    assert (transformer(rows) - transformer(rows.flip(1))).abs().max() > 1


def test_every_width_of_the_transformer_can_be_resized(
    transformer_task: Task, transformer: torch.nn.Module
) -> None:
    graph = trace(transformer, transformer_task.example_inputs())
    assert graph.widths == {
        "embed": 16,
        "blocks.0.attention.query": 4,
        "blocks.0.into": 24,
        "blocks.1.attention.query": 4,
        "blocks.1.into": 24,
    }
    optimizer = torch.optim.Adam(transformer.parameters())
    for group in list(graph.groups):
        before = group.width
        graph.apply([Shrink(group.name, keep=range(before // 2))], optimizer=optimizer)
        graph.apply([Grow(group.name, units=1, exact=group.exact_growth)], optimizer=optimizer)
        assert graph[group.name].width == before // 2 + 1
    weight = dict(transformer.named_parameters())["blocks.0.into.weight"]
    graph.apply([Mask("blocks.0.into.weight", keep=weight.abs() > weight.abs().median())])
    transformer_task.train_steps(transformer, optimizer, 5)
    assert graph.cost().nonzero < graph.cost().params


@pytest.mark.parametrize(
    ("granularity", "target"), [("unit", Budget(flops=0.6)), ("weight", Budget(nonzero=0.6))]
)
def test_the_transformer_is_pruned_with_little_loss(
    transformer_task: Task, transformer: torch.nn.Module, granularity: str, target: Budget
) -> None:
    result = prune(
        transformer,
        transformer_task,
        target=target,
        criterion="reconstruction",
        granularity=granularity,
    )
    for kind in target.kinds:
        assert result.after.cost.relative_to(result.before.cost, kind) <= 0.6
    assert result.after.validation.metric > result.before.validation.metric - 0.1


def test_the_transformer_has_curves_and_an_allocation(
    transformer_task: Task, transformer: torch.nn.Module
) -> None:
    graph = trace(transformer, transformer_task.example_inputs())
    curves = sensitivity(graph, transformer_task, fractions=(0.5,))
    widths = allocate(graph, transformer_task, Budget(flops=0.8), curves=curves)
    assert widths.keys() == graph.widths.keys()
    assert any(widths[name] < graph.widths[name] for name in widths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0; it must be from 1"),
        ({"num_blocks": 10_000}, "num_blocks is 10000; it must be from 1 to 200"),
        ({"num_heads": 3}, "num_heads is 3, which does not divide the width 32"),
        ({"feedforward": 1.5}, "feedforward must be a whole number, not 1.5"),
    ],
)
def test_impossible_transformers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_task("digits-transformer", options)


def test_the_transformer_travels_to_workers(transformer_task: Task) -> None:
    copy: Task = pickle.loads(pickle.dumps(transformer_task))
    assert copy.evaluate(copy.new_model(seed=0)) == transformer_task.evaluate(
        transformer_task.new_model(seed=0)
    )
