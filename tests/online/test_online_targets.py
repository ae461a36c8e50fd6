"""Targets in other shapes and types than the outputs, and whole numbers as inputs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynopt_ray.errors import DataError
from dynopt_ray.online import Guard, Replay, evaluate
from dynopt_ray.tasks import Task
from tests.online.learners import learner


class Squeezed(nn.Linear):
    """One number per event, without a dimension of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[:, 0]


def summed(num_batches: int, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_batches, rows, 4, generator=generator)
    return [(batch, batch.sum(1)) for batch in x]


def own_squares(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def own_binary(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output.flatten(), target.flatten().float())


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("guard", [None, Guard(window=16)])
@pytest.mark.parametrize(("network", "column"), [(nn.Linear, False), (Squeezed, True)])
def test_numbers_with_and_without_a_column_of_their_own_teach_the_same(
    loss: str, guard: Guard | None, network: type[nn.Linear], column: bool
) -> None:
    torch.manual_seed(0)
    start = network(4, 1).state_dict()
    learners = []
    for as_column in (column, not column):
        model = network(4, 1)
        model.load_state_dict(start)
        subject = learner(model, loss=loss, guard=guard)
        for x, y in summed(60):
            assert subject.learn(x, y[:, None] if as_column else y).rows == tuple(range(8))
        learners.append(subject)
    assert all(map(torch.equal, *(s.model.state_dict().values() for s in learners)))
    x, y = summed(1)[0]
    assert (learners[0].predict(x).flatten() - y).abs().mean() < 0.4 * y.abs().mean()


@pytest.mark.parametrize("y", [torch.ones(3), torch.ones(3, 2), torch.ones(3, 1, 2)])
def test_numbers_of_another_shape_are_refused(y: Tensor) -> None:
    subject = learner(nn.Linear(4, 3), loss="mse")
    result = subject.learn(torch.ones(3, 4), y)
    assert not result.rows
    assert f"y has shape {tuple(y.shape[1:])}; the network's output has shape (3,)" in (
        result.rejected[0].reason
    )


@pytest.mark.parametrize("y", [3, [4], np.int32(2)])
def test_whole_numbers_are_quantities_for_a_loss_of_numbers(y: Any) -> None:
    subject = learner(nn.Linear(4, 1), loss="mse")
    result = subject.learn([0.0, 1.0, 0.0, 1.0], y)
    assert (result.rows, result.targets) == ((0,), "numbers")
    assert result.loss == pytest.approx((float(result.output) - np.ravel(y)[0]) ** 2, rel=1e-5)


@pytest.mark.parametrize("loss", [own_squares, F.mse_loss, nn.SmoothL1Loss()])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_of_ones_own_that_broadcasts_is_refused(loss: Any) -> None:
    subject = learner(nn.Linear(4, 1), loss=loss)
    x, y = summed(1)[0]
    result = subject.learn(x, y)
    assert not result.rows
    assert "the loss compares every row with every other row" in result.rejected[0].reason
    assert subject.learn(x, y[:, None]).rows == tuple(range(8))


def test_a_loss_of_ones_own_that_lines_rows_up_itself_is_left_alone() -> None:
    subject = learner(nn.Linear(4, 1), loss=lambda o, y: own_squares(o[:, 0], y), guard=Guard())
    for x, y in summed(100):
        assert subject.learn(x, y).rows == tuple(range(8))
    assert torch.allclose(subject.predict(x)[:, 0], y, atol=0.1)


def test_a_guard_does_not_judge_by_a_loss_that_broadcasts_over_its_window() -> None:
    # A single event of one number is compared rightly; several of them in the window are not.
    subject = learner(nn.Linear(4, 1), loss=own_squares, guard=Guard(window=8))
    results = [subject.learn(x, y[0]) for x, y in [(x[0], y) for x, y in summed(4)]]
    assert [bool(result.rows) for result in results] == [True, True, False, False]
    assert "compares every row with every other" in results[-1].rejected[0].reason


def test_a_replay_that_can_train_on_nothing_says_why() -> None:
    subject = learner(nn.Linear(4, 1), loss=own_squares, reactions=Replay(batch_size=4))
    for x, y in summed(8):
        subject.learn(x[0], y[0])
    with pytest.raises(DataError, match=r"Replay: .* none of the latest 8 events.*every other row"):
        subject.reactions[0](subject, drift=True)


@pytest.mark.parametrize("network", [nn.Linear, Squeezed])
@pytest.mark.parametrize("column", [False, True])
def test_one_logit_with_a_loss_of_ones_own_means_the_classes_0_and_1(
    network: type[nn.Linear], column: bool
) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    labels = y[:, None] if column and network is nn.Linear else y
    subject = learner(network(4, 1), loss=own_binary)
    frame = evaluate(
        list(zip(torch.split(x, 8), torch.split(labels, 8), strict=True)), subject, window=200
    )
    assert frame["quarantined"].sum() == 0
    assert frame["window_accuracy"].iloc[-1] > 0.9
    # The same rows, network and loss as a task, which counts by its own metric.
    task = Task.from_arrays(
        model=lambda: nn.Linear(4, 1), train=(x, y), validation=(x, y), loss=own_binary
    )
    result = subject.learn(x, labels)
    assert 1 - np.mean(result.errors) == pytest.approx(
        task.evaluate(subject.model).metric, abs=0.02
    )
    assert task.outputs == "logits"


@pytest.mark.parametrize("network", [nn.Linear(4, 1), Squeezed(4, 1)])
def test_one_logit_refuses_other_labels(network: nn.Module) -> None:
    subject = learner(network, loss=own_binary)
    reason = subject.learn([1.0] * 4, 2).rejected[0].reason
    assert reason.startswith("y is 2; one output per label only tells the classes 0 and 1 apart")
    assert subject.learn([1.0] * 4, 1).errors in [(0.0,), (1.0,)]


class Tokens(nn.Module):
    """Looks whole numbers up, which floats cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(self.table(x).mean(1))
        return output


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8, np.bool_])
def test_whole_numbers_become_floats_for_a_network_that_needs_floats(dtype: Any) -> None:
    x = np.array([[1, 0, 1, 1], [0, 1, 1, 0]])
    torch.manual_seed(0)
    whole, real = learner(guard=Guard()), learner(guard=Guard())
    for _ in range(3):
        assert whole.learn(x.astype(dtype), np.array([1, 2])).rows == (0, 1)
        real.learn(x.astype(np.float32), np.array([1, 2]))
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.parameters(), real.model.parameters(), strict=True)
    )
    frozen = whole.freeze()
    for subject in (whole, frozen, learner().freeze(), learner()):
        assert subject.predict(x[0].astype(dtype)).shape == (3,)
    assert torch.equal(frozen.predict(x.astype(dtype)), frozen.predict(x.astype(np.float32)))


def test_images_of_bytes_are_learned_from() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    images = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)
    subject = learner(model, optimizer=lambda p: torch.optim.SGD(p, lr=1e-5))
    assert subject.learn(images, np.arange(5) % 3).rows == tuple(range(5))


def test_embeddings_get_whole_numbers_as_they_are() -> None:
    subject = learner(Tokens(), guard=Guard())
    # An index that the table lacks is one bad event; it decides nothing about the stream.
    assert not subject.learn(np.array([[10, 1]]), np.array([0])).rows
    assert subject.learn(np.array([[9, 1], [0, 3]]), np.array([0, 2])).rows == (0, 1)
    assert "the network refuses" in subject.learn([[0.5, 1.0]], [0]).rejected[0].reason


class Either(nn.Linear):
    """Takes whole numbers and floats."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


def test_whole_numbers_first_do_not_shut_floats_out() -> None:
    subject = learner(Either(4, 3), guard=Guard(window=4))
    assert subject.learn([1, 0, 2, 3], 1).rows == (0,)
    assert subject.learn([0.5, 0.0, 2.0, 3.0], 1).rows == (0,)
    assert subject.learn([1, 0, 2, 3], 1).rows == (0,)
    assert subject.memory.latest(4)[0].dtype == torch.float32
