"""What tests of learners share: a network, a learner, events, and all state as bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.online import OnlineLearner, save

SGD: Callable[..., torch.optim.Optimizer] = torch.optim.SGD


def network(*, seed: int = 0, dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    norm: nn.Module = nn.BatchNorm1d(6) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3))


def learner(model: nn.Module | None = None, **settings: Any) -> OnlineLearner:
    model = network() if model is None else model
    optimizer = settings.pop("optimizer", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    return OnlineLearner(model, optimizer(model.parameters()), **settings)


def events(num_events: int, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_events, 4, generator=generator)
    return [(row, row[:3].argmax()) for row in x]


def state_bytes(of: OnlineLearner, directory: Path) -> bytes:
    """The whole state as the bytes of a snapshot: equal bytes, equal learners."""
    save(directory / "compared", of)
    return (directory / "compared").read_bytes()
