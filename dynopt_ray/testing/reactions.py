"""The conformance kit for reactions to drift."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dynopt_ray.online import OnlineLearner, Reaction, load, save
from dynopt_ray.structure import trace
from dynopt_ray.testing.requirement import require

_DRIFTS = (120, 145)


def check_reaction(make: Callable[[], Reaction]) -> None:
    """Check that a reaction to drift meets its contract.

    The reaction must:

    - change nothing while there is no drift;
    - keep what the network has learned when there is drift;
    - be deterministic, whatever random numbers the rest of the process draws;
    - continue bit for bit as before in a learner that is restored from disk during the reaction.

    Args:
        make: makes the reaction; all reactions that it makes must agree.

    Raises:
        AssertionError: the reaction breaks the contract; the message says how.

    Example:
        >>> from dynopt_ray.online import Replay
        >>> check_reaction(Replay)
    """
    calm, plain = _learner(make(), drifts=()), _learner(None, drifts=())
    _learn(calm, 60)
    _learn(plain, 60)
    require(
        _weights(calm) == _weights(plain),
        "the reaction changes the network although there is no drift",
    )

    before, after = _learner(None, drifts=_DRIFTS), _learner(make(), drifts=_DRIFTS)
    _learn(before, _DRIFTS[0])
    _learn(after, _DRIFTS[0])
    require(
        _loss(after) < _loss(before) + 0.1,
        f"the reaction raises the loss on the latest events from {_loss(before):.3f} to "
        f"{_loss(after):.3f}: a reaction must keep what was learned",
    )
    _require_restored(make)


class _At:
    """A detector that reports drift at the given events."""

    def __init__(self, events: tuple[int, ...]) -> None:
        self._events = events
        self._seen = 0

    def update(self, _error: float) -> bool:
        self._seen += 1
        return self._seen in self._events

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]


def _learner(reaction: Reaction | None, *, drifts: tuple[int, ...]) -> OnlineLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return OnlineLearner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5),
        detector=_At(drifts),
        reactions=() if reaction is None else reaction,
        structure=trace(model, torch.zeros(2, 4)),
    )


def _events() -> torch.Tensor:
    return torch.randn(_DRIFTS[1] + 60, 4, generator=torch.Generator().manual_seed(1))


def _learn(learner: OnlineLearner, num_events: int) -> None:
    for row in _events()[learner.events : learner.events + num_events]:
        learner.learn(row, row[:3].argmax())


def _loss(learner: OnlineLearner) -> float:
    x = _events()[_DRIFTS[0] - 20 : _DRIFTS[0]]
    return float(F.cross_entropy(learner.predict(x), x[:, :3].argmax(dim=1)))


def _weights(learner: OnlineLearner) -> list[list[float]]:
    return [p.flatten().tolist() for p in learner.model.parameters()]


def _require_restored(make: Callable[[], Reaction]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        original, restored = (_learner(make(), drifts=_DRIFTS) for _ in range(2))
        _learn(original, _DRIFTS[0] + 3)
        save(directory / "saved", original)
        with torch.random.fork_rng(devices=[]):
            torch.rand(7)
            load(directory / "saved", restored)
            _learn(restored, 50)
        save(directory / "restored", restored)
        _learn(original, 50)
        save(directory / "original", original)
        require(
            (directory / "original").read_bytes() == (directory / "restored").read_bytes(),
            "a learner that is restored during a reaction continues differently: put all state "
            "into state_dict, and draw from learner.generator()",
        )
