"""The built-in tasks, on real data, and loading tasks by name."""

import doctest
import gzip
import importlib
import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets  # type: ignore[import-untyped]
from torch import nn

from dynopt_ray import plugins
from dynopt_ray.criteria import unit_scores
from dynopt_ray.errors import DataError, PluginError, SpecError, UnknownNameError
from dynopt_ray.schedules import cosine
from dynopt_ray.structure import trace
from dynopt_ray.tasks import Task, load_task
from dynopt_ray.tasks.builtin import fashion_mnist
from dynopt_ray.testing import check_task

debian = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_DIR.is_dir(), reason="dataset-fashion-mnist is not installed"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.csv"
    datasets.load_iris(as_frame=True).frame.to_csv(path, index=False)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A small data set in the files of Fashion-MNIST, two plain and two compressed."""
    rng = np.random.default_rng(0)
    for name, size in (("train", 120), ("t10k", 30)):
        pixels = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = np.arange(size, dtype=np.uint8) % 10
        header = struct.pack(">4B3I", 0, 0, 8, 3, size, 28, 28)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        content = struct.pack(">4BI", 0, 0, 8, 1, size) + labels.tobytes()
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No data set anywhere but where a test puts it."""
    monkeypatch.delenv("DYNOPT_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "absent")
    return tmp_path


def test_every_registered_task_passes_the_kit(table: Path, images: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "digits-mlp": {},
        "digits-cnn": {"channels": [4, 8], "hidden": 16},
        "digits-transformer": {"width": 16, "num_blocks": 1},
        "fashion-mnist-mlp": {"data_dir": str(images), "hidden": [16]},
        "fashion-mnist-cnn": {"data_dir": str(images), "channels": [4], "hidden": 16},
        "generated-mlp": {"rows": 300, "hidden": [16]},
        "tabular": {"path": str(table), "target": "target"},
    }
    assert sorted(options) == plugins.names("tasks")
    for name, arguments in options.items():
        check_task(load_task(name, arguments))


@pytest.mark.parametrize(
    "module",
    [
        "tasks",
        "tasks.batches",
        "tasks.distribution",
        "tasks.loading",
        "tasks.task",
        "testing.tasks",
    ],
)
def test_the_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dynopt_ray.{module}"))
    assert results.attempted
    assert not results.failed


def test_digits_mlp_learns() -> None:
    task = load_task("digits-mlp")
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    before = task.evaluate(model).metric
    task.train_steps(
        model,
        optimizer,
        300,
        generator=torch.Generator().manual_seed(0),
        schedule=cosine(3e-3, num_steps=300),
    )
    assert before < 0.3
    assert task.evaluate(model).metric > 0.94
    assert task.evaluate(model).smooth > 0.9


def test_digits_are_split_by_class_and_standardised_by_training_pixels() -> None:
    task = load_task("digits-mlp")
    sizes = {split: len(task.arrays(split)[1]) for split in task.splits}
    assert sizes == {"train": 1079, "validation": 359, "test": 359}
    x = task.arrays("train")[0]
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert abs(task.arrays("test")[0].mean().item()) > 1e-4
    for split in task.splits:
        counts = task.arrays(split)[1].bincount(minlength=10) / sizes[split]
        assert counts.min() > 0.09
        assert counts.max() < 0.11


def test_the_seed_decides_the_split() -> None:
    first, same, other = (load_task("digits-mlp", {"seed": seed}) for seed in (1, 1, 2))
    assert torch.equal(first.arrays("test")[0], same.arrays("test")[0])
    assert not torch.equal(first.arrays("test")[0], other.arrays("test")[0])


def test_splits_hold_each_image_once() -> None:
    task = load_task("digits-mlp")
    rows = torch.cat([task.arrays(split)[1] for split in task.splits])
    assert torch.equal(rows.bincount(), torch.from_numpy(datasets.load_digits().target).bincount())


def test_widths_are_named_and_chosen() -> None:
    model = load_task({"name": "digits-mlp", "hidden": [48, 24], "batch_size": 16}).new_model()
    widths = {
        name: m.out_features for name, m in model.named_children() if isinstance(m, nn.Linear)
    }
    assert widths == {"0": 48, "2": 24, "4": 10}


def test_a_cnn_without_hidden_layer_has_normalisations_behind_every_width() -> None:
    task = load_task({"name": "digits-cnn", "channels": [4, 6], "hidden": None})
    graph = trace(task.new_model(seed=0), task.example_inputs())
    assert [group.width for group in graph] == [4, 4, 6, 6]
    assert min(map(len, unit_scores(graph, "batchnorm_scale").values())) == 4


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_tasks_travel_to_workers(name: str) -> None:
    task = load_task(name)
    copy: Task = pickle.loads(pickle.dumps(task))
    assert copy.evaluate(copy.new_model(seed=0)) == task.evaluate(task.new_model(seed=0))


@debian
def test_fashion_mnist_mlp_is_the_articles_network_and_learns() -> None:
    task = load_task("fashion-mnist-mlp")
    assert {split: tuple(task.arrays(split)[0].shape) for split in task.splits} == {
        "train": (50_000, 784),
        "validation": (10_000, 784),
        "test": (10_000, 784),
    }
    model = task.new_model(seed=0)
    assert [p.numel() for p in model.parameters()] == [784 * 128, 128, 1280, 10]
    optimizer = torch.optim.Adam(model.parameters())
    task.train_steps(model, optimizer, 200, generator=torch.Generator().manual_seed(0))
    assert task.evaluate(model).metric > 0.82


@debian
@pytest.mark.slow
def test_fashion_mnist_cnn_learns() -> None:
    task = load_task("fashion-mnist-cnn")
    model = task.new_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    task.train_steps(model, optimizer, 150, generator=torch.Generator().manual_seed(0))
    assert task.evaluate(model).metric > 0.8


@pytest.mark.parametrize("below", ["", "fashion-mnist"])
def test_fashion_mnist_is_found_through_the_environment(
    monkeypatch: pytest.MonkeyPatch, nowhere: Path, images: Path, below: str
) -> None:
    home = nowhere / "home"
    (home / below).mkdir(parents=True)
    for file in images.glob("*ubyte*"):
        file.rename(home / below / file.name)
    monkeypatch.setenv("DYNOPT_DATA", str(home))
    task = load_task("fashion-mnist-mlp")
    assert [len(task.arrays(split)[1]) for split in task.splits] == [100, 20, 30]


@pytest.mark.usefixtures("nowhere")
def test_fashion_mnist_from_openml(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bunch:
        data = (np.arange(70_000, dtype=np.int32) % 251)[:, None].repeat(784, 1)
        target = (np.arange(70_000) % 10).astype(str)

    asked: list[str] = []

    def fetch(name: str, **_: object) -> type[Bunch]:
        asked.append(name)
        return Bunch

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    arrays = fashion_mnist.read_fashion_mnist()
    assert asked == ["Fashion-MNIST"]
    assert [arrays[name].shape for name in fashion_mnist.FILES] == [
        (60_000, 28, 28),
        (60_000,),
        (10_000, 28, 28),
        (10_000,),
    ]
    assert arrays["t10k-images-idx3-ubyte"][0, 0, 0] == 60_000 % 251


def test_a_failed_download_says_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, nowhere: Path
) -> None:
    def refuse(name: str, **_: object) -> None:
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setenv("DYNOPT_DATA", str(nowhere / "empty"))
    monkeypatch.setattr(datasets, "fetch_openml", refuse)
    with pytest.raises(DataError, match="no route to Fashion-MNIST") as caught:
        load_task("fashion-mnist-mlp")
    for part in (str(nowhere / "empty"), "no route", "data_dir", "DYNOPT_DATA", "dataset-fashion"):
        assert part in str(caught.value)


def test_a_data_dir_that_lacks_files_names_them(images: Path) -> None:
    (images / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte"):
        load_task("fashion-mnist-mlp", {"data_dir": images})


def test_other_arrays_are_not_fashion_mnist(images: Path) -> None:
    labels = (images / "t10k-labels-idx1-ubyte.gz").read_bytes()
    (images / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(DataError, match=r"is not Fashion-MNIST: train-images.*\(30,\)"):
        load_task("fashion-mnist-cnn", {"data_dir": images})


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("digits-mpl", {}, UnknownNameError, "no task 'digits-mpl'. Did you mean 'digits-mlp'"),
        ("digits-mlp", {"hiden": [3]}, SpecError, "no argument 'hiden'. Did you mean 'hidden'"),
        ("tabular", {}, SpecError, "'tabular' needs path, target"),
        ("digits-mlp", {"hidden": 64}, SpecError, r"hidden must be a list of widths such as \[64"),
        ("digits-mlp", {"hidden": "64"}, SpecError, "hidden must be a list"),
        ("digits-mlp", {"hidden": [6.5]}, SpecError, "hidden must hold whole numbers, not 6.5"),
        ("digits-mlp", {"hidden": [0]}, SpecError, "hidden holds 0"),
        ("digits-mlp", {"hidden": []}, SpecError, "hidden has 0 widths"),
        ("digits-mlp", {"batch_size": 0}, SpecError, "batch_size is 0"),
        ("digits-cnn", {"channels": [2] * 4}, SpecError, "channels has 4 blocks.*give at most 3"),
        (
            {"name": "digits-mlp", "seed": 1},
            {"seed": 2},
            SpecError,
            "'seed' is given twice: 1 and 2",
        ),
        (None, {}, SpecError, "by name or as a mapping with a 'name', not as None"),
        ({"seed": 1}, {}, SpecError, "has no 'name'"),
        ("own_tasks:text", {}, PluginError, "made 'no task'; its function must return a Task"),
        ("own_tasks:absent", {}, PluginError, "has no attribute 'absent'"),
    ],
)
@pytest.mark.usefixtures("own_tasks")
def test_bad_specs(spec: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_task(spec, options)


@pytest.mark.usefixtures("own_tasks")
def test_a_task_of_the_users_own_by_path() -> None:
    task = load_task("own_tasks:sums", {"num_rows": 30})
    check_task(task)
    assert len(task.arrays("train")[1]) == 30


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's own in the working directory."""
    (tmp_path / "own_tasks.py").write_text(
        "import torch\n"
        "from dynopt_ray.tasks import Task\n"
        "def sums(num_rows):\n"
        "    x = torch.ones(num_rows, 2)\n"
        "    data = (x, x.sum(1, keepdim=True))\n"
        "    model = lambda: torch.nn.Linear(2, 1)\n"
        "    return Task.from_arrays(model=model, train=data, validation=data, loss='mse')\n"
        "def text():\n"
        "    return 'no task'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_tasks", None)
