"""The kit finds each way in which a task can be broken."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.errors import DataError
from dynopt_ray.tasks import Task
from dynopt_ray.testing import check_task

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
PAIRS = [(X[:15], Y[:15]), (X[15:], Y[15:])]
COUNTER = count()


def arrays(**options: Any) -> Task:
    defaults = {"model": lambda: nn.Linear(3, 2), "train": (X, Y), "validation": (X, Y)}
    return Task.from_arrays(**{**defaults, **options})


def loaders(**options: Any) -> Task:
    defaults = {"model": lambda: nn.Linear(3, 2), "train": PAIRS, "validation": PAIRS}
    return Task.from_loaders(**{**defaults, **options})


class Base(nn.Module):
    """A sound network, to be broken in one way each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class Overwriting(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class Counting(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return super().forward(x)


class Noisy(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn(x.shape))


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + 0 * self.linear.bias


class Stuck(Base):
    def train(self, mode: bool = True) -> "Stuck":
        super().train(mode)
        self.linear.bias.data.add_(float(not mode))
        return self


def own_randomness() -> nn.Module:
    model = nn.Linear(3, 2)
    model.bias.data.fill_(next(COUNTER))
    return model


def shrinking() -> Any:
    rest = iter([PAIRS, PAIRS, PAIRS[:1]])
    return lambda: next(rest, PAIRS[:1])


def test_sound_tasks_pass() -> None:
    check_task(arrays())
    check_task(arrays(test=(X, Y), model=Base))
    check_task(arrays(loss="mse", train=(X, X[:, :2]), validation=(X, X[:, :2])))
    check_task(loaders())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (arrays(model=own_randomness), "two models made with the same seed differ"),
        (arrays(model=nn.Identity), "no parameter to train"),
        (arrays(model=Overwriting), "the model writes to its inputs"),
        (arrays(model=Counting), "evaluating changes the model's weights or buffers"),
        (arrays(model=Noisy), "evaluating train twice gives"),
        (arrays(model=Detached, loss=lambda o, y: (o * 0).sum() + y.sum()), "changes no parameter"),
        (loaders(train=shrinking()), "one pass over train gives"),
        (arrays(model=lambda: nn.LSTM(3, 2)), "returns tuple, not a tensor"),
    ],
)
def test_broken_tasks_fail(task: Task, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_task(task)


def test_training_that_cannot_be_repeated_fails() -> None:
    factors = count(1)
    task = arrays(loss=lambda o, y: nn.functional.cross_entropy(o, y) * next(factors))
    task = arrays(
        loss=lambda o, y: (
            nn.functional.cross_entropy(o, y) * (next(factors) if torch.is_grad_enabled() else 1)
        )
    )
    with pytest.raises(AssertionError, match="training twice with the same seeds"):
        check_task(task)


def test_labels_outside_the_classes_fail() -> None:
    with pytest.raises(DataError, match="but the model has 1 outputs"):
        check_task(arrays(model=lambda: nn.Linear(3, 1)))
