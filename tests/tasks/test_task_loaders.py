"""Tasks on loaders: every form of batch, going on between calls, and bad batches."""

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from dynopt_ray.errors import DataError
from dynopt_ray.tasks import Task
from dynopt_ray.tasks.builtin.models import mlp_factory

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MODEL = mlp_factory(4, [8], 2)
PAIRS = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.cat([left, right], 1))
        return out


def task_of(train: Any = PAIRS, **options: Any) -> Task:
    return Task.from_loaders(
        **{"model": MODEL, "train": train, "validation": PAIRS, "name": "toy", **options}
    )


@pytest.mark.parametrize(
    ("loader", "model"),
    [
        (PAIRS, MODEL),
        (DataLoader(TensorDataset(X, Y), batch_size=8), MODEL),
        (lambda: iter(PAIRS), MODEL),
        ([(x.numpy(), y.numpy()) for x, y in PAIRS], MODEL),
        ([{"pixels": x, "label": y} for x, y in PAIRS], MODEL),
        ([{"left": x[:, :2], "right": x[:, 2:], "labels": y} for x, y in PAIRS], Two),
        ([((x[:, :2], x[:, 2:]), y) for x, y in PAIRS], Two),
        ([({"left": x[:, :2], "right": x[:, 2:]}, y) for x, y in PAIRS], Two),
    ],
    ids=["pairs", "DataLoader", "function", "numpy", "dict", "keywords", "arguments", "mapping"],
)
def test_all_forms_of_batches(loader: Any, model: Any) -> None:
    task = task_of(loader, model=model, validation=loader)
    network = task.new_model(seed=0)
    stats = task.train_steps(network, SGD(network.parameters(), lr=0.5), 60)
    assert (stats.num_steps, stats.num_samples) == (60, 480)
    metrics = task.evaluate(network)
    assert metrics.num_samples == 24
    assert metrics.metric > 0.9
    assert metrics.confidence is not None
    assert task.num_classes == 2


def test_loader_metrics_equal_those_on_arrays() -> None:
    arrays = Task.from_arrays(model=MODEL, train=(X, Y), validation=(X, Y), batch_size=8)
    model = arrays.new_model(seed=0)
    assert task_of().evaluate(model) == arrays.evaluate(model)


@pytest.mark.parametrize(
    "inputs",
    [X, (X, X[:, :1]), {"left": X, "right": X[:, :1]}],
    ids=["tensor", "arguments", "keywords"],
)
def test_example_inputs_are_two_rows_of_what_the_model_takes(inputs: Any) -> None:
    example = task_of([(inputs, Y)]).example_inputs()
    assert type(example) is type(inputs)
    parts = example.values() if isinstance(example, dict) else example
    assert all(len(part) == 2 for part in ([example] if isinstance(example, Tensor) else parts))


def test_looking_at_a_shuffled_loader_does_not_move_the_generator() -> None:
    task = task_of(DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True))
    before = torch.get_rng_state()
    task.example_inputs()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_goes_on_where_the_last_call_stopped() -> None:
    seen: list[Tensor] = []
    task = task_of(loss=lambda output, y: seen.append(y) or nn.functional.cross_entropy(output, y))  # type: ignore[func-returns-value]
    model = task.new_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        task.train_steps(model, optimizer, 1)
    assert all(torch.equal(y, expected) for y, (_, expected) in zip(seen, PAIRS, strict=False))
    assert torch.equal(seen[3], PAIRS[0][1])


def test_targets_follow_the_loss() -> None:
    numbers = [(x, y[:, None]) for x, y in PAIRS]
    task = task_of(numbers, validation=numbers, model=mlp_factory(4, [8], 1), loss="mse")
    model = task.new_model()
    task.train_steps(model, SGD(model.parameters(), lr=0.1), 3)
    assert task.evaluate(model).confidence is None
    assert task.num_classes is None


def test_a_reproducible_shuffle_is_the_loaders_own() -> None:
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(1)
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=generator)
        task = task_of(loader)
        model = task.new_model(seed=0)
        task.train_steps(model, SGD(model.parameters(), lr=0.1), 5)
        results.append(model.get_parameter("0.weight"))
    assert torch.equal(*results)


def test_a_pickled_copy_starts_a_new_pass() -> None:
    task = task_of()
    model = task.new_model()
    task.train_steps(model, SGD(model.parameters(), lr=0.1), 1)
    copy: Task = pickle.loads(pickle.dumps(task))
    assert copy.evaluate(model) == task.evaluate(model)


def with_third(batch: Any) -> list[Any]:
    return [*PAIRS[:2], batch]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (X[:8].index_fill(1, torch.tensor([2]), torch.nan), Y[:8]),
            "batch 2, x, row 0, column 2: nan",
        ),
        ((X[:8], Y[:7]), "train batch 2: 8 rows of inputs and 7 of targets"),
        ((X[:8], Y[:8] - 1), "train batch 2, y, row .: label -1"),
        ((X[:8], Y[:8] + 5), "train batch 2, y, row .: label 6, but the model has 2 outputs"),
        ((X[:8], Y[:8].float()), "train batch 2, y holds torch.float32; labels must be whole"),
        (X[:8], r"train batch 2 is a Tensor; a batch must be \(inputs, targets\) or a dict"),
        ((X, Y, X), "train batch 2 is a tuple"),
        ({"pixels": X[:8]}, "batch 2 has the keys pixels; one of label, labels, target"),
        (({"a": X[:8], "b": np.array(["x"] * 8)}, Y[:8]), "train batch 2, b holds <U1, not num"),
        ((((X[:8], X[:8] * torch.inf)), Y[:8]), r"batch 2, x\[1\], row 0, column 0"),
        ({"pixels": X[0], "label": 1}, "train batch 2, y is a single value"),
    ],
)
def test_bad_batches_are_named(batch: Any, message: str) -> None:
    task = task_of(with_third(batch))
    model = task.new_model()
    with pytest.raises(DataError, match=message):
        task.train_steps(model, SGD(model.parameters(), lr=0.1), 3)


def endless_empty() -> Iterator[Any]:
    return iter([])


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (iter(PAIRS), DataError, "the train loader is a list_iterator, which is used up after one"),
        (3, TypeError, "the train loader, 3, cannot be iterated over"),
    ],
)
def test_bad_loaders(loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        task_of(loader)


def test_an_empty_loader_is_said_to_be_empty() -> None:
    task = task_of(endless_empty)
    model = task.new_model()
    with pytest.raises(DataError, match="the train loader gives no batches"):
        task.train_steps(model, SGD(model.parameters()), 1)
    with pytest.raises(DataError, match="the train loader gives no batches"):
        task.example_inputs()


def test_loaders_have_no_arrays_and_no_other_batch_size() -> None:
    task = task_of()
    with pytest.raises(DataError, match="reads its train split from a loader"):
        task.arrays("train")
    with pytest.raises(DataError, match="reads its train split from a loader"):
        _ = task.data
    with pytest.raises(DataError, match="makes its own batches; leave out batch_size"):
        task.batches("train", 4)
    with pytest.raises(DataError, match="makes its own batches"):
        task.train_steps(model := task.new_model(), SGD(model.parameters()), 1, batch_size=4)


def test_batches_move_to_the_tasks_device() -> None:
    task = task_of([((X[:, :2], X[:, 2:]), Y)], model=Two).to("meta")
    (inputs, targets), *_ = task.batches("train")
    assert {part.device.type for part in (*inputs, targets)} == {"meta"}
