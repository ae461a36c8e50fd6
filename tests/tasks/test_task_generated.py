"""Generated tasks, and the distribution of tasks that policies are trained on."""

import pickle
import time
from typing import Any

import numpy as np
import pytest
import torch

from dynopt_ray.errors import DataError, SpecError, UnknownNameError
from dynopt_ray.tasks import STACKABLE_SIZE, Task, TaskSpec, drawn_tasks, load_task
from dynopt_ray.tasks.builtin.generated import Problem
from dynopt_ray.testing import check_task

EASY = {"features": 12, "classes": 4, "rows": 1_200, "separation": 2.0, "hidden": [48]}


def generated(**options: Any) -> Task:
    return load_task("generated-mlp", {**EASY, **options})


def trained_accuracy(task: Task, hidden: bool = True) -> float:
    """Of the task's network on test data, or of a linear map."""
    columns = task.arrays("train")[0].shape[1]
    torch.manual_seed(0)
    model = task.new_model(seed=0) if hidden else torch.nn.Linear(columns, task.num_classes or 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    task.train_steps(model, optimizer, 300, generator=torch.Generator().manual_seed(0))
    return task.evaluate(model, "test").metric


@pytest.mark.parametrize("origin", ["clusters", "teacher"])
@pytest.mark.parametrize("nonlinearity", [0.0, 0.5, 1.0])
def test_a_generated_task_can_be_learned(origin: str, nonlinearity: float) -> None:
    task = generated(origin=origin, nonlinearity=nonlinearity)
    assert trained_accuracy(task) > 0.6  # chance is 0.25


@pytest.mark.parametrize("origin", ["clusters", "teacher"])
def test_label_noise_lowers_accuracy(origin: str) -> None:
    clean, noisy = (
        trained_accuracy(generated(origin=origin, nonlinearity=0.2, label_noise=share))
        for share in (0.0, 0.3)
    )
    assert clean - noisy > 0.1
    assert noisy < 0.7 + 0.05  # a classifier cannot know which labels were replaced


@pytest.mark.parametrize("origin", ["clusters", "teacher"])
def test_nonlinear_problems_need_hidden_units(origin: str) -> None:
    gains = []
    for nonlinearity in (0.0, 1.0):
        task = generated(origin=origin, nonlinearity=nonlinearity, features=8, rows=4_000)
        gains.append(trained_accuracy(task) - trained_accuracy(task, hidden=False))
    assert gains[1] > gains[0] + 0.15


def test_label_noise_replaces_exactly_so_many_labels() -> None:
    clean, noisy = (Problem(rows=1_000, label_noise=noise, seed=3).draw() for noise in (0.0, 0.17))
    assert np.array_equal(clean[0], noisy[0])
    assert (clean[1] != noisy[1]).sum() == 170


@pytest.mark.parametrize("origin", ["clusters", "teacher"])
@pytest.mark.parametrize(("features", "redundancy", "informative"), [(20, 0.6, 8), (9, 0.0, 9)])
def test_redundant_columns_are_combinations_of_the_others(
    origin: Any, features: int, redundancy: float, informative: int
) -> None:
    problem = Problem(origin=origin, features=features, redundancy=redundancy, rows=500)
    x = problem.draw()[0]
    assert x.shape == (500, features)
    assert problem.informative == np.linalg.matrix_rank(x - x.mean(0), tol=1e-6) == informative


@pytest.mark.parametrize("origin", ["clusters", "teacher"])
def test_classes_have_about_the_same_number_of_rows(origin: Any) -> None:
    for seed in range(5):
        problem = Problem(origin=origin, features=6, redundancy=0, classes=10, seed=seed)
        y = problem.draw()[1]
        counts = np.bincount(y, minlength=10)
        assert counts.min() > 170
        assert counts.max() < 230


def test_the_seed_decides_everything() -> None:
    same, again, other = (generated(seed=seed, label_noise=0.1) for seed in (4, 4, 5))
    for split in same.splits:
        for ours, theirs in zip(same.arrays(split), again.arrays(split), strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(same.arrays(split)[0], other.arrays(split)[0])


def test_columns_are_standardised_by_training_rows() -> None:
    x = generated().arrays("train")[0]
    torch.testing.assert_close(x.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(12), atol=1e-5, rtol=0)


def test_the_splits_hold_each_row_once() -> None:
    task = generated()
    rows = torch.cat([task.arrays(split)[0] for split in task.splits])
    assert len(rows) == len({tuple(row) for row in rows.tolist()}) == 1_200


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "generated-mlp", **EASY},
        {"name": "digits-mlp", "rows": [0, 600], "classes": [1, 7, 9], "hidden": [16]},
    ],
)
def test_padding_appends_zeros_and_outputs(spec: TaskSpec) -> None:
    plain, padded = load_task(spec), load_task({**spec, "pad_to": [70, 12]})
    columns = plain.arrays("train")[0].shape[1]
    for split in plain.splits:
        x, y = padded.arrays(split)
        assert x.shape[1] == 70
        assert torch.equal(x[:, :columns], plain.arrays(split)[0])
        assert not x[:, columns:].any()
        assert torch.equal(y, plain.arrays(split)[1])
    assert padded.num_classes == 12
    assert int(padded.arrays("train")[1].max()) + 1 == plain.num_classes
    check_task(padded)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"origin": "cluster"}, UnknownNameError, "no origin 'cluster'. Did you mean 'clusters'"),
        ({"features": 0}, SpecError, "features is 0; it must be at least 1"),
        ({"features": 2.5}, SpecError, "features must be a whole number, not 2.5"),
        ({"classes": 1}, SpecError, "classes is 1; it must be at least 2"),
        ({"rows": 8}, DataError, "cannot set aside"),
        ({"label_noise": 1.0}, SpecError, r"label_noise is 1.0; it must be in \[0, 1\)"),
        ({"redundancy": -0.1}, SpecError, r"redundancy is -0.1; it must be in \[0, 1\)"),
        ({"nonlinearity": 2}, SpecError, r"nonlinearity is 2; it must be in \[0, 1\]"),
        ({"separation": 0}, SpecError, "separation is 0; it must be above 0"),
        ({"redundancy": 0.9}, DataError, "12 clusters need 4 columns that are not redundant"),
        ({"pad_to": 64}, SpecError, r"pad_to must be \[columns, classes\]"),
        ({"pad_to": [64]}, SpecError, r"pad_to must be \[columns, classes\]"),
        ({"pad_to": [11, 10]}, SpecError, "the task has 12 columns and 4 classes"),
        ({"pad_to": [64, 3]}, SpecError, "the task has 12 columns and 4 classes"),
    ],
)
def test_impossible_problems_are_refused(
    options: TaskSpec, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generated(**options)


def test_drawn_tasks_load_and_can_be_learned() -> None:
    accuracies = []
    for spec in (*drawn_tasks(8, seed=1), *drawn_tasks(4, seed=1, held_back=True)):
        task = load_task(spec)
        chance = 1 / len({*task.arrays("train")[1].tolist()})
        accuracies.append((trained_accuracy(task) - chance) / (1 - chance))
    assert min(accuracies) > 0.2
    assert np.median(accuracies) > 0.6


def test_draws_are_deterministic_and_begin_alike() -> None:
    assert drawn_tasks(6, seed=2) == drawn_tasks(10, seed=2)[:6]
    assert drawn_tasks(6, seed=2) != drawn_tasks(6, seed=3)
    assert drawn_tasks(0) == ()
    with pytest.raises(ValueError, match="number is -1"):
        drawn_tasks(-1)


def test_drawn_networks_have_one_to_four_hidden_layers_of_8_to_128_units() -> None:
    specs = drawn_tasks(200, seed=0)
    assert [len(spec["hidden"]) for spec in specs[:5]] == [1, 2, 3, 4, 1]
    widths = [width for spec in specs for width in spec["hidden"]]
    assert min(widths) == 8
    assert 120 < max(widths) <= 128
    assert 40 < sum(spec["name"] == "digits-mlp" for spec in specs) < 60
    assert {spec["origin"] for spec in specs if "origin" in spec} == {"clusters", "teacher"}


def test_tasks_that_are_held_back_share_no_data_with_the_others() -> None:
    trained = [spec for seed in range(4) for spec in drawn_tasks(100, seed)]
    held = [spec for seed in range(4) for spec in drawn_tasks(100, seed, held_back=True)]
    problems, images = zip(*(_data_of(specs) for specs in (trained, held)), strict=True)
    assert not problems[0] & problems[1]
    assert not images[0] & images[1]
    assert min(map(len, (*problems, *images))) > 100


def _data_of(specs: list[TaskSpec]) -> tuple[set[int], set[int]]:
    """The seeds of generated problems, and the numbers of the images of digits."""
    problems = {spec["seed"] for spec in specs if spec["name"] == "generated-mlp"}
    ranges = [range(*spec["rows"]) for spec in specs if spec["name"] == "digits-mlp"]
    return problems, {number for rows in ranges for number in rows}


def test_held_back_digits_are_other_images() -> None:
    """The same as above, from the images themselves."""
    trained, held = (
        {image for spec in drawn_tasks(16, held_back=back) for image in _images(spec)}
        for back in (False, True)
    )
    assert len(trained) > 500
    assert len(held) > 300
    assert not trained & held


def _images(spec: TaskSpec) -> list[bytes]:
    """The images of a task of digits, with their pixels as in the data set."""
    if spec["name"] != "digits-mlp":
        return []
    task = load_task(spec)
    x = torch.cat([task.arrays(split)[0] for split in task.splits])
    pixels = ((x - x.min()) / (x.max() - x.min()) * 16).round().to(torch.uint8)
    return [bytes(image) for image in pixels.tolist()]


def test_padded_draws_of_equal_depth_have_networks_of_one_input_and_output_size() -> None:
    for spec in drawn_tasks(12, seed=5, pad_to=STACKABLE_SIZE):
        layers = [
            m for m in load_task(spec).new_model().children() if isinstance(m, torch.nn.Linear)
        ]
        assert layers[0].in_features == 64
        assert layers[-1].out_features == 10


def test_drawn_tasks_load_within_tens_of_milliseconds() -> None:
    load_task("digits-mlp")  # imports scikit-learn
    durations = []
    for spec in drawn_tasks(20, pad_to=STACKABLE_SIZE):
        start = time.process_time()
        load_task(spec)
        durations.append(time.process_time() - start)
    assert np.median(durations) < 0.05


def test_generated_tasks_travel_to_workers() -> None:
    task = generated()
    copy: Task = pickle.loads(pickle.dumps(task))
    assert copy.evaluate(copy.new_model(seed=0)) == task.evaluate(task.new_model(seed=0))
