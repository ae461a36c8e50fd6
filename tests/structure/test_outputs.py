"""What a network returns is its interface: its sizes stay, in whatever it is packed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
    TanhTransform,
    TransformedDistribution,
)

from dynopt_ray.structure import trace


class _Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class _Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class _Record:
    policy: Any


class KeyCache:
    """What a network keeps for its next pass; the name of its class says so."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


Pack = Callable[[Tensor], Any]

PACKED: dict[str, Pack] = {
    "categorical": lambda p: Categorical(logits=p),
    "one_hot": lambda p: OneHotCategorical(logits=p),
    "bernoulli": lambda p: Bernoulli(logits=p),
    "normal": lambda p: Normal(p, p.exp()),
    "independent": lambda p: Independent(Normal(p, p.exp()), 1),
    "mixture": lambda p: MixtureSameFamily(Categorical(logits=p), Normal(p, p.exp())),
    "transformed": lambda p: TransformedDistribution(Normal(p, p.exp()), [TanhTransform()]),
    "slotted": _Slotted,
    "nested": lambda p: [{"policy": _Plain(_Plain(p))}],
    "record": lambda p: _Record(Categorical(logits=p)),
}


class ActorCritic(nn.Module):
    def __init__(self, pack: Pack) -> None:
        super().__init__()
        self.pack = pack
        self.body, self.policy, self.value = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).tanh()
        return self.pack(self.policy(hidden)), self.value(hidden)


@pytest.mark.parametrize("kind", PACKED)
def test_what_lies_in_an_object_beside_a_tensor_is_an_output(kind: str) -> None:
    graph = trace(ActorCritic(PACKED[kind]), torch.randn(5, 4))
    assert graph.widths == {"body": 8}
    assert graph.fixed["policy"] == "it is the network's output"
    assert graph["body"].exact_growth


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys, self.read = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, KeyCache]:
        keys = self.keys(x)
        return self.read(keys), KeyCache(keys)


def test_a_returned_cache_is_no_output() -> None:
    assert trace(Decoder(), torch.randn(5, 4)).widths == {"keys": 6}
