"""Attentions that keep a table made of their biases from one pass to the next, in many ways."""

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class _Attention(nn.Module):
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.biases = nn.Parameter(torch.randn(4, 9))
        self.register_buffer("index", torch.randint(0, 9, (5, 5)), persistent=False)
        self.set_up()

    def set_up(self) -> None:
        """Prepare the place of the table."""

    def table(self) -> Tensor:
        raise NotImplementedError

    def made(self) -> Tensor:
        return self.biases[:, self.index]

    def forward(self, x: Tensor) -> Tensor:
        batch, n, _ = x.shape
        q, k, v = self.qkv(x).view(batch, n, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind()
        scores = (q @ k.transpose(-1, -2) * 0.5 + self.table()).softmax(-1)
        out: Tensor = self.out((scores @ v).transpose(1, 2).flatten(2))
        return out


class InDict(_Attention):
    def set_up(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def table(self) -> Tensor:
        if "table" not in self.kept:
            self.kept["table"] = self.made()
        return self.kept["table"]


class InTuples(_Attention):
    def set_up(self) -> None:
        self.kept: dict[str, tuple[Tensor, int]] = {}

    def table(self) -> Tensor:
        if "table" not in self.kept:
            self.kept["table"] = (self.made(), 1)
        return self.kept["table"][0]


class InList(_Attention):
    def set_up(self) -> None:
        self.kept: list[Tensor] = []

    def table(self) -> Tensor:
        if not self.kept:
            self.kept.append(self.made())
        return self.kept[0]


class InAttribute(_Attention):
    def set_up(self) -> None:
        self.kept: Tensor | None = None

    def table(self) -> Tensor:
        if self.kept is None:
            self.kept = self.made()
        return self.kept


class InNewAttribute(_Attention):
    def table(self) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = self.made()
        return self.kept


class InBuffer(_Attention):
    kept: Tensor | None

    def set_up(self) -> None:
        self.register_buffer("kept", None, persistent=False)

    def table(self) -> Tensor:
        if self.kept is None:
            self.kept = self.made()
        return self.kept


class InNewBuffer(_Attention):
    def table(self) -> Tensor:
        if "kept" not in self._buffers:
            self.register_buffer("kept", self.made(), persistent=False)
        return self.get_buffer("kept")


class InClass(_Attention):
    kept: ClassVar[dict[int, Tensor]] = {}

    def table(self) -> Tensor:
        if id(self) not in self.kept:
            self.kept[id(self)] = self.made()
        return self.kept[id(self)]


class InProperty(_Attention):
    @functools.cached_property
    def kept(self) -> Tensor:
        return self.made()

    def table(self) -> Tensor:
        return self.kept


class InMethod(_Attention):
    @functools.lru_cache  # noqa: B019
    def table(self) -> Tensor:
        return self.made()


class InStaticMethod(_Attention):
    @staticmethod
    @functools.lru_cache
    def looked_up(biases: Tensor, index: Tensor) -> Tensor:
        return biases[:, index]

    def table(self) -> Tensor:
        return self.looked_up(self.biases, self.index)


CACHES: tuple[type[_Attention], ...] = (
    *(InDict, InTuples, InList, InAttribute, InNewAttribute),
    *(InBuffer, InNewBuffer, InClass, InProperty, InMethod, InStaticMethod),
)


class WithConstant(_Attention):
    """Adds a constant that is no parameter and no buffer."""

    def set_up(self) -> None:
        self.constant = torch.randn(5, 5)

    def table(self) -> Tensor:
        return self.made() + self.constant.to(self.biases.device)


class WithState(nn.Module):
    """Adds what it kept of the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        state = 0.0 if self.last is None else self.last.to(h.device)
        self.last = x.detach().mean() + 0.5 * state
        out: Tensor = self.second(h + state)
        return out
