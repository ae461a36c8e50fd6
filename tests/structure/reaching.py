"""Networks whose example inputs use only a part of what the networks have."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Positions(nn.Module):
    """A table of 32 positions, read in one of several ways, between two layers.

    Args:
        shape: the shape of the table; the size that counts positions is 32.
        read: takes the table and a length, and returns what is added to the tokens.
        learned: whether the table is a parameter; otherwise a buffer.
    """

    def __init__(
        self, shape: tuple[int, ...], read: Callable[[Tensor, int], Tensor], *, learned: bool = True
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        table = torch.randn(shape)
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu() + self.read(self.table, x.shape[1]))
        return out


class CausalAttention(nn.Module):
    """Attention with a table of masks for 16 tokens, and of biases for 31 distances."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("mask", torch.full((1, 1, 16, 16), -math.inf).triu(1))
        self.biases = nn.Parameter(torch.randn(2, 31))
        self.rows, self.columns = (nn.Parameter(torch.randn(16, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = self.qkv(self.first(x)).view(len(x), n, 3, -1, 4).permute(2, 0, 3, 1, 4)
        distances = self.biases[:, 16 - n : 15 + n].unfold(1, n, 1).flip(1)
        table = self.rows[:n, None] * self.columns[None, :n]
        scores = q @ k.transpose(-2, -1) / 2 + self.mask[:, :, :n, :n] + distances
        scores = scores + (q[..., :, None, :] * table).sum(-1)
        out: Tensor = self.second((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


class KeyCache(nn.Module):
    """Writes keys into a cache of 64 steps, of which later steps read those so far."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.key, self.second = nn.Linear(5, 8), nn.Linear(8, 2)
        self.register_buffer("cache", torch.zeros(2, 64, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[:, : x.shape[1]] = self.key(x).detach()
        out: Tensor = self.second(self.cache[:, : x.shape[1]])
        return out


class Stacked(nn.Module):
    """Six layers in one parameter, of which a pass runs as many as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layers = nn.Parameter(torch.randn(6, 8, 8) / 3)
        self.scales = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for i in range(x.shape[1]):
            h = h + (h @ self.layers[i]).relu() * self.scales[i]
        out: Tensor = self.second(h)
        return out


class Deep(nn.Module):
    """Six blocks in a list, of which a pass runs as many as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        blocks = (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(6))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks[: x.shape[1]]:
            h = h + block(h)
        out: Tensor = self.second(h)
        return out


class Adapters(nn.Module):
    """Eight pairs of matrices in lists of parameters, of which a pass adds one for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.down = nn.ParameterList(nn.Parameter(torch.randn(4, 8)) for _ in range(8))
        self.up = nn.ParameterList(nn.Parameter(torch.randn(8, 4)) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for i in range(x.shape[1]):
            h = h + h @ self.down[i].T @ self.up[i].T
        out: Tensor = self.second(h.relu())
        return out


class Registers(nn.Module):
    """Attention over four learned tokens and those of the input; only the latter are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.registers = nn.Parameter(torch.randn(1, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.registers.expand(len(x), -1, -1), self.first(x)], 1)
        h = h + nn.functional.scaled_dot_product_attention(h, h, h)
        out: Tensor = self.second(h[:, self.registers.shape[1] :])
        return out


class Tokens(nn.Module):
    """Mixes tokens with a matrix for 16 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.mix = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        out: Tensor = self.second(self.mix[:n, :n] @ self.first(x))
        return out


class Unused(nn.Module):
    """Computes more than it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.side, self.wide = nn.Linear(8, 4), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.side(h).softmax(-1)
        out: Tensor = self.second(h) + self.wide(h)[..., :3]
        return out


class PartlyRead(nn.Module):
    """Makes twelve units, of which the next layer reads the first eight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x)[..., : self.second.in_features])
        return out


TABLES: dict[str, tuple[tuple[int, ...], Callable[[Tensor, int], Tensor]]] = {
    "slice": ((1, 32, 8), lambda t, n: t[:, :n]),
    "slice of rows": ((32, 8), lambda t, n: t[:n]),
    "from the end": ((32, 8), lambda t, n: t[-n:]),
    "in the middle": ((32, 8), lambda t, n: t[4 : 4 + n]),
    "narrow": ((32, 8), lambda t, n: t.narrow(0, 0, n)),
    "arange": ((32, 8), lambda t, n: t[torch.arange(n, device=t.device)]),
    "index_select": ((32, 8), lambda t, n: t.index_select(0, torch.arange(n, device=t.device))),
    "embedding": (
        (32, 8),
        lambda t, n: nn.functional.embedding(torch.arange(n, device=t.device), t),
    ),
    "gather": (
        (32, 8),
        lambda t, n: t.gather(0, torch.arange(n, device=t.device)[:, None].expand(-1, t.shape[1])),
    ),
    "split": ((32, 8), lambda t, n: torch.split(t, [n, 32 - n])[0]),
    "columns": ((8, 32), lambda t, n: t[:, :n].T),
    "whole, then slice": ((1, 32, 8), lambda t, n: (t * 0.5).tanh()[:, :n]),
    "one by one": ((32, 8), lambda t, n: torch.stack([t[i] for i in range(n)])),
    "unbound": ((32, 8), lambda t, n: torch.stack(t.unbind(0)[:n])),
    "broadcast": ((32, 1), lambda t, n: t[:n]),
}
