"""Tasks on arrays: what is taken as it is, what is converted, and every bad input."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.tasks import Task
from dynopt_ray.tasks.builtin.models import mlp_factory

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = np.arange(20) % 2
MODEL = mlp_factory(3, [4], 2)


def task_of(x: Any = X, y: Any = Y, **options: Any) -> Task:
    return Task.from_arrays(
        **{"model": MODEL, "train": (x, y), "validation": (x, y), "name": "toy", **options}
    )


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, Y),
        (X.astype(np.float64), Y.astype(np.int8)),
        (X.astype(">f4"), Y.astype(np.uint64)),
        (X[::-1][::-1], Y.astype(bool)),
        (torch.from_numpy(X).double(), torch.from_numpy(Y).int()),
        (pd.DataFrame(X, columns=["a", "b", "c"]), pd.Series(Y)),
        (pd.DataFrame(X).astype(object), pd.Series(Y, dtype="Int64")),
        (X.tolist(), Y.tolist()),
    ],
    ids=["numpy", "float64", "endian", "strides", "torch", "pandas", "object", "lists"],
)
def test_all_kinds_of_arrays_become_the_same_tensors(x: Any, y: Any) -> None:
    ours = task_of(x, y).arrays("train")
    assert torch.equal(ours[0], torch.from_numpy(X))
    assert torch.equal(ours[1], torch.from_numpy(Y))


def test_whole_numbers_stay_whole_for_embeddings_and_booleans_become_floats() -> None:
    tokens = np.arange(40, dtype=np.uint8).reshape(20, 2)
    assert task_of(tokens).arrays("train")[0].dtype == torch.int64
    assert task_of(X > 0).arrays("train")[0].dtype == torch.float32


def test_fitting_arrays_are_shared_not_copied_even_if_read_only() -> None:
    x, y = X.copy(), Y.copy()
    x.flags.writeable = y.flags.writeable = False
    task = task_of(x, y)
    assert task.arrays("train")[0].data_ptr() == x.ctypes.data
    assert task.arrays("train")[1].data_ptr() == y.ctypes.data
    shared = task.data["train"][0]
    assert np.shares_memory(shared, x)
    assert not shared.flags.writeable
    again = Task.from_arrays(model=MODEL, **task.data)
    assert again.arrays("validation")[0].data_ptr() == x.ctypes.data


def test_a_pickled_task_passes_its_arrays_on_as_buffers() -> None:
    task = task_of()
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(task, protocol=5, buffer_callback=buffers.append)
    copy: Task = pickle.loads(small, buffers=[buffer.raw().toreadonly() for buffer in buffers])
    assert copy.arrays("train")[0].data_ptr() == task.arrays("train")[0].data_ptr()
    assert len(small) < X.nbytes + 2_000
    model = task.new_model(seed=1)
    assert copy.evaluate(copy.new_model(seed=1)) == task.evaluate(model)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            np.where(np.arange(60).reshape(20, 3) == 10, np.nan, X),
            Y,
            "train x, row 3, column 1: na",
        ),
        (np.where(np.arange(60).reshape(20, 3) == 0, -np.inf, X), Y, "row 0, column 0: -inf"),
        (np.where(np.arange(60).reshape(20, 3) == 10, 1e300, X.astype(float)), Y, "row 3.*inf as"),
        (
            pd.DataFrame(X, columns=["a", "b", "c"]).mask(np.arange(60).reshape(20, 3) == 11),
            Y,
            "row 3, column 'c': nan",
        ),
        (np.full((20, 1, 2, 2), np.nan), Y, r"row 0, position \(0, 0, 0\): nan .* 79 more"),
        (X, np.where(Y == 1, np.nan, 0.0), "train y, row 1: nan"),
        (X, Y.astype(float), "train y holds float64; labels must be whole numbers"),
        (X, Y - 1, "train y, row 0: label -1"),
        (X, Y[:-1], "train: x has 20 rows and y has 19"),
        (X[:0], Y[:0], "train x is empty"),
        (X[:, :0], Y, r"train x is empty: its shape is \(20, 0\)"),
        (X[:, 0], Y, r"train x has shape \(20,\); inputs need rows and columns"),
        (X, np.int64(3), "train y is a single value"),
        (X.astype(complex), Y, "train x holds complex128, not numbers"),
        (torch.ones(20, 3, dtype=torch.cfloat), Y, "give dense real numbers"),
        (X, np.array(["cat", "dog"] * 10), "train y holds <U3, not numbers; encode it first"),
        (pd.DataFrame({"a": [1.0] * 20, "b": ["x"] * 20}), Y, "row 0, column 'b': 'x' is not a nu"),
        (pd.DataFrame({"a": [None, 2] * 10}, dtype=object), Y, "row 0, column 'a': None is not"),
        (X, pd.Series(["1"] * 20, dtype=object), "train y, row 0: '1' is not a number"),
        ([[1.0], [1.0, 2.0]], [0, 1], "train x cannot become an array"),
        (pd.DataFrame({"a": pd.date_range("2020", periods=20)}), Y, "train x holds datetime64"),
    ],
)
def test_data_that_cannot_be_learned_from(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(x, y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "crossentropy"}, UnknownNameError, "Did you mean 'cross_entropy'"),
        ({"metric": "acuracy"}, UnknownNameError, "no metric 'acuracy'. Did you mean 'accuracy'"),
        ({"metric": "r2"}, ValueError, "'r2' is for numbers, but the targets are labels; use acc"),
        ({"loss": 3}, TypeError, "loss must be a name"),
        ({"metric": 3}, TypeError, "metric must be a name"),
        ({"model": MODEL()}, TypeError, "model must be a function.*write model=lambda"),
        ({"model": "mlp"}, TypeError, "not str"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"validation": (X[:, :2], Y)}, DataError, r"validation x has rows of .* shape \(2,\)"),
        ({"test": (X > 0, Y[:, None])}, DataError, r"test y has rows of torch.int64, shape \(1,\)"),
        ({"validation": X}, DataError, r"validation must be a pair \(x, y\), not ndarray"),
        ({"test": (X[:0], Y[:0])}, DataError, "test x is empty"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        task_of(**options)


def test_labels_outside_the_classes_are_named_at_first_use() -> None:
    y = Y.copy()
    y[[7, 9]] = 2
    message = r"validation y, row 7: label 2, but the model has 2 outputs, for the classes 0 … 1"
    task = task_of(validation=(X, y))
    with pytest.raises(DataError, match=message):
        task.evaluate(task.new_model())
    assert task.num_classes == 2
    bad = task_of(X, y)
    model = bad.new_model()
    with pytest.raises(DataError, match="train y, row 7: label 2"):
        bad.train_steps(model, torch.optim.SGD(model.parameters()), 1)
    with pytest.raises(DataError, match="train y, row 7: label 2"):
        _ = bad.num_classes


@pytest.mark.parametrize(
    ("model", "y", "loss", "message"),
    [
        (lambda: nn.Linear(3, 1), np.ones(20), "mse", r"\(20, 1\) for targets of shape \(20,\)"),
        (lambda: nn.Flatten(0), Y, "cross_entropy", r"\(60,\) for labels of shape \(20,\)"),
        (lambda: nn.LSTM(3, 2), Y, "cross_entropy", "the model returns tuple; a task needs one"),
    ],
)
def test_outputs_that_do_not_fit(model: Any, y: Any, loss: str, message: str) -> None:
    task = task_of(X, y, model=model, loss=loss)
    with pytest.raises(DataError, match=message):
        task.evaluate(task.new_model())


def test_a_factory_must_make_a_module() -> None:
    with pytest.raises(TypeError, match="the model factory of task 'toy' returned 3"):
        task_of(model=lambda: 3).new_model()


def test_unknown_splits_name_the_known_ones() -> None:
    task = task_of()
    assert task.splits == ("train", "validation")
    with pytest.raises(UnknownNameError, match=r"no split in task 'toy' called 'test'\. Known: tr"):
        task.evaluate(task.new_model(), "test")
    with pytest.raises(UnknownNameError, match="Did you mean 'validation'"):
        task.batches("validaton")  # type: ignore[arg-type]


def test_example_inputs_are_two_rows() -> None:
    assert torch.equal(task_of().example_inputs(), torch.from_numpy(X[:2]))  # type: ignore[arg-type]


def test_repr_and_num_classes() -> None:
    assert repr(task_of(test=(X, Y))) == "Task('toy', splits=train, validation, test, device=cpu)"
    assert task_of(model=mlp_factory(3, [4], 5)).num_classes == 5
    assert task_of(X, X[:, :1], loss="mse").num_classes is None


def test_another_device() -> None:
    task = task_of().to("meta")
    assert task.new_model().get_parameter("0.weight").device.type == "meta"
    assert task.arrays("train")[0].device.type == "meta"
