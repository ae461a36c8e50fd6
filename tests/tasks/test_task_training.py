"""Training and evaluating: exact, repeatable, and leaving nothing behind."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import SGD

from dynopt_ray.errors import DataError, DivergedError
from dynopt_ray.schedules import exponential, to_torch
from dynopt_ray.tasks import Metrics, Task, load_task
from dynopt_ray.tasks.builtin.models import mlp_factory

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(53, 4, generator=GENERATOR)
Y = (X[:, 0] + X[:, 1] > 0).long() + (X[:, 2] > 1).long()


class WithModes(nn.Module):
    """Batch norm and dropout: both tell train from eval."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def task_of(**options: Any) -> Task:
    defaults = {
        "model": mlp_factory(4, [8], 3),
        "train": (X, Y),
        "validation": (X, Y),
        "batch_size": 10,
    }
    return Task.from_arrays(**{**defaults, **options})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_new_models_of_a_seed_are_equal_and_leave_the_generator_alone() -> None:
    task, before = task_of(), torch.get_rng_state()
    assert torch.equal(weights(task.new_model(seed=3)), weights(task.new_model(seed=3)))
    assert not torch.equal(weights(task.new_model(seed=3)), weights(task.new_model(seed=4)))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(weights(task.new_model()), weights(task.new_model()))


def test_batches_in_order_and_shuffled_hold_each_row_once() -> None:
    task = task_of()
    ordered = list(task.batches("train"))
    assert [len(y) for _, y in ordered] == [10] * 5 + [3]
    assert torch.equal(torch.cat([x for x, _ in ordered]), X)  # type: ignore[misc]
    shuffled, same = (torch.cat([y for _, y in task.batches("train", 7, seeded())]) for _ in "ab")
    assert torch.equal(shuffled, same)
    assert not torch.equal(shuffled, Y)
    assert torch.equal(shuffled.sort()[0], Y.sort()[0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        task.batches("train", 0)


def test_training_equals_a_loop_written_by_hand() -> None:
    task = task_of()
    ours = task.new_model(seed=0)
    stats = task.train_steps(ours, SGD(ours.parameters(), lr=0.1), 8, generator=seeded())

    theirs = task.new_model(seed=0)
    optimizer, losses = SGD(theirs.parameters(), lr=0.1), []
    generator = seeded()
    order = torch.cat([torch.randperm(53, generator=generator) for _ in range(2)])
    for rows in order[:80].reshape(8, 10):
        optimizer.zero_grad()
        loss = F.cross_entropy(theirs(X[rows]), Y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())

    assert torch.equal(weights(ours), weights(theirs))
    assert stats.mean_loss == pytest.approx(sum(losses) / 8)
    assert stats.last_loss == losses[-1]
    assert (stats.num_steps, stats.num_samples) == (8, 80)


def test_training_is_repeatable_by_generator_or_global_seed() -> None:
    task, results = task_of(), []
    for _ in range(2):
        torch.manual_seed(5)
        model = task.new_model(seed=0)
        task.train_steps(model, SGD(model.parameters(), lr=0.1), 7)
        results.append(weights(model))
    assert torch.equal(*results)


def test_a_generator_goes_on_from_call_to_call() -> None:
    task, seen, generator = task_of(batch_size=53), [], seeded()
    loss = lambda output, y: seen.append(y) or F.cross_entropy(output, y)  # type: ignore[func-returns-value]  # noqa: E731
    task = task_of(batch_size=53, loss=loss)
    model = task.new_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        task.train_steps(model, optimizer, 1, generator=generator)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_left_as_they_were_found(training: bool) -> None:
    task = task_of(model=WithModes)
    model = task.new_model().train(training)
    batch_norm = model.get_submodule("net.1")
    batch_norm.train(not training)
    running = batch_norm.get_buffer("running_mean")
    before = running.clone()
    task.evaluate(model)
    assert torch.equal(running, before)
    task.train_steps(model, SGD(model.parameters(), lr=0.1), 1)
    assert not torch.equal(running, before)
    assert (model.training, batch_norm.training) == (training, not training)


def test_modes_are_restored_after_a_failure() -> None:
    task = task_of(model=nn.Identity, metric=lambda output, y: output.nope)  # noqa: ARG005
    model = task.new_model().train()
    with pytest.raises(AttributeError, match="nope"):
        task.evaluate(model)
    assert model.training


def test_evaluation_is_exact_whatever_the_batch_size() -> None:
    model = task_of().new_model(seed=0).eval()
    output = model(X)
    expected = Metrics(
        loss=F.cross_entropy(output, Y).item(),
        metric=(output.argmax(1) == Y).double().mean().item(),
        confidence=output.softmax(1)[torch.arange(53), Y].mean().item(),
        num_samples=53,
    )
    for batch_size in (1, 10, 100):
        metrics = task_of(batch_size=batch_size).evaluate(model)
        assert metrics.metric == expected.metric
        assert metrics.num_samples == 53
        assert metrics.loss == pytest.approx(expected.loss, rel=1e-6)
        assert metrics.confidence == pytest.approx(expected.confidence, rel=1e-6)
        assert metrics.smooth == pytest.approx((metrics.metric + (metrics.confidence or 0)) / 2)


def test_evaluation_changes_nothing_and_keeps_no_gradients() -> None:
    task = task_of(model=WithModes)
    model = task.new_model(seed=0)
    before, state = weights(model), torch.get_rng_state()
    assert task.evaluate(model) == task.evaluate(model)
    assert torch.equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("columns", [1, 3])
def test_regression_metrics_equal_scikit_learns(columns: int) -> None:
    y = X[:, :columns] * 2 + 1
    task = task_of(model=mlp_factory(4, [8], columns), train=(X, y), validation=(X, y), loss="mse")
    model = task.new_model(seed=0)
    metrics = task.evaluate(model)
    predicted = model(X).detach()
    assert metrics.metric == pytest.approx(r2_score(y.numpy(), predicted.numpy()), rel=1e-5)
    assert metrics.loss == pytest.approx(F.mse_loss(predicted, y).item(), rel=1e-5)
    assert metrics.confidence is None
    assert metrics.smooth == metrics.metric


def test_r2_of_constant_targets() -> None:
    ones = np.ones((53, 1))
    for model, expected in ((nn.Identity, 1.0), (nn.Tanh, 0.0)):
        task = task_of(model=model, train=(ones, ones), validation=(ones, ones), loss="l1")
        assert task.evaluate(task.new_model()).metric == expected


def test_ones_own_loss_and_metric() -> None:
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    task = task_of(loss=smoothed, metric=lambda output, y: output.argmax(1).eq(y).sum())
    model = task.new_model(seed=0)
    metrics = task.evaluate(model)
    assert metrics.loss == pytest.approx(smoothed(model(X), Y).item(), rel=1e-6)
    assert metrics.metric == int((model(X).argmax(1) == Y).sum())
    assert metrics.confidence is not None


def test_ones_own_loss_decides_about_shapes() -> None:
    def first_column(output: Tensor, y: Tensor) -> Tensor:
        return ((output[:, 0] - y) ** 2).mean()

    task = task_of(
        train=(X, X[:, 0]),
        validation=(X, X[:, 0]),
        loss=first_column,
        metric=lambda output, y: -first_column(output, y),
    )
    metrics = task.evaluate(task.new_model())
    assert metrics.metric == pytest.approx(-metrics.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"returns shape \(10,\); it must return one numb"),
        (lambda output, y: 0.5, "returns 0.5"),  # noqa: ARG005
    ],
)
def test_a_loss_must_be_one_number(loss: Any, message: str) -> None:
    task = task_of(loss=loss)
    model = task.new_model()
    with pytest.raises(TypeError, match=message):
        task.train_steps(model, SGD(model.parameters()), 1)


def test_divergence_names_the_step_and_does_not_take_it() -> None:
    factors = iter([1.0, 1.0, math.nan])
    task = task_of(loss=lambda output, y: F.cross_entropy(output, y) * next(factors))
    model = task.new_model(seed=0)
    with pytest.raises(DivergedError, match="the loss is nan at step 3 of 9; this step was not"):
        task.train_steps(model, SGD(model.parameters(), lr=0.1), 9, generator=seeded())
    assert model.training
    expected = task_of().new_model(seed=0)
    task_of().train_steps(expected, SGD(expected.parameters(), lr=0.1), 2, generator=seeded())
    assert torch.equal(weights(model), weights(expected))


def test_a_broken_network_cannot_be_judged() -> None:
    task = task_of()
    model = task.new_model()
    model.get_parameter("0.weight").data.fill_(math.nan)
    with pytest.raises(DivergedError, match="the loss over 53 rows is nan"):
        task.evaluate(model)


def test_a_schedule_sets_the_rate_of_each_step_of_a_call() -> None:
    task, rates = task_of(), []
    model = task.new_model()
    optimizer = SGD(model.parameters(), lr=7.0)
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: rates.append(opt.param_groups[0]["lr"])  # noqa: ARG005
    )
    for _ in range(2):
        task.train_steps(model, optimizer, 3, schedule=exponential(0.4, gamma=0.5))
    assert rates == [0.4, 0.2, 0.1] * 2


def test_a_torch_scheduler_goes_on_from_call_to_call() -> None:
    task = task_of()
    model = task.new_model()
    optimizer = SGD(model.parameters(), lr=7.0)
    scheduler = to_torch(exponential(0.4, gamma=0.5), optimizer)
    for _ in range(2):
        task.train_steps(model, optimizer, 1, schedule=scheduler)
    assert scheduler.get_last_lr() == [0.1]
    with pytest.raises(ValueError, match="made for another optimizer"):
        task.train_steps(model, SGD(model.parameters()), 1, schedule=scheduler)


def test_an_optimizer_of_another_network_trains_nothing() -> None:
    task = load_task("digits-mlp")
    foreign = torch.optim.SGD(task.new_model(seed=1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of this network's parameters"):
        task.train_steps(task.new_model(seed=0), foreign, 1)


def test_no_steps_are_no_training() -> None:
    task = task_of()
    with pytest.raises(ValueError, match="num_steps is 0"):
        task.train_steps(task.new_model(), SGD([nn.Parameter(X)]), 0)


def test_training_works_where_gradients_are_switched_off() -> None:
    task = task_of()
    model = task.new_model(seed=0)
    before = weights(model)
    with torch.no_grad():
        task.train_steps(model, SGD(model.parameters(), lr=0.1), 1)
    assert not torch.equal(weights(model), before)


def test_whole_numbers_do_not_suit_linear_layers_and_that_is_said() -> None:
    task = task_of(train=(X.long(), Y), validation=(X.long(), Y))
    with pytest.raises(RuntimeError, match="got Long and Float") as caught:
        task.evaluate(task.new_model())
    assert "other layers need floats" in caught.value.__notes__[0]


def test_labels_are_checked_even_with_ones_own_loss() -> None:
    task = task_of(model=mlp_factory(4, [8], 2), loss=lambda output, y: output.sum() * y.sum())
    with pytest.raises(DataError, match="label 2, but the model has 2 outputs"):
        task.evaluate(task.new_model())


def binary_loss(output: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output.reshape(targets.shape), targets.float())


@pytest.mark.parametrize("shape", ["column", "flat", "labels"])
def test_one_logit_per_label_is_for_losses_of_ones_own(shape: str) -> None:
    width = 2 if shape == "labels" else 1
    made: list[nn.Module] = [nn.Linear(4, width)]
    y = (X[:, :2] > 0).long() if shape == "labels" else (X[:, 0] > 0).long()
    if shape == "flat":
        made.append(nn.Flatten(0))
    task = task_of(
        model=lambda: nn.Sequential(*made), train=(X, y), validation=(X, y), loss=binary_loss
    )
    model = task.new_model(seed=0)
    task.train_steps(model, SGD(model.parameters(), lr=1.0), 300, generator=seeded())
    metrics = task.evaluate(model)
    logits = model(X).detach().reshape(y.shape)
    right = torch.where(y == 1, logits.sigmoid(), 1 - logits.sigmoid())
    assert metrics.metric == ((logits > 0) == (y == 1)).double().mean().item() > 0.95
    assert metrics.confidence == pytest.approx(right.mean().item())
    assert task.num_classes == 2


def test_one_output_does_not_tell_three_classes_apart() -> None:
    def squared(output: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(output[:, 0], targets.float())

    options: dict[str, Any] = {"model": lambda: nn.Linear(4, 1), "loss": squared}
    with pytest.raises(DataError, match="the classes 0 and 1 apart, but there is class 2; give"):
        task_of(**options).evaluate(nn.Linear(4, 1))
    counts = task_of(**options, metric=lambda output, targets: -float(squared(output, targets)))
    assert counts.evaluate(nn.Linear(4, 1)).confidence is None
    with pytest.raises(DataError, match="label 2, but the model has 1 outputs"):
        task_of(model=lambda: nn.Linear(4, 1)).evaluate(nn.Linear(4, 1))


def test_labels_as_floats_are_not_judged_as_numbers() -> None:
    y = (X[:, :1] > 0).float()
    options: dict[str, Any] = {"model": lambda: nn.Linear(4, 1), "loss": binary_loss}
    task = task_of(**options, train=(X, y), validation=(X, y))
    with pytest.raises(DataError, match=r"Make them whole numbers, .*; or give the task a metric"):
        task.evaluate(nn.Linear(4, 1))
    named = task_of(**{**options, "loss": "mse"}, train=(X, y), validation=(X, y))
    assert named.evaluate(nn.Linear(4, 1)).confidence is None
