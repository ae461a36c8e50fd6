"""Steps of random networks: attention in the ways in which people write it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.fuzzed_layers import LONGEST
from tests.structure.fuzzed_layouts import Draw, Layout, Step, Width, written

VIEWS = ("attributes", "heads", "head size", "literal")
PROJECTIONS = ("separate", "chunk", "split", "three", "own", "grouped", "repeated")
PRODUCTS = ("sdpa", "matmul", "einsum", "bmm")
SCALES = ("attribute", "shape", "sqrt", "literal")
MASKS = ("none", "none", "causal", "buffer", "bias")


class Attention(Step):
    """Heads of queries, keys and values, with any projection, view and product.

    The number of heads and their size are attributes, numbers written into the code, or follow
    from one another.
    """

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        inner = draw.width((8, 12))
        super().__init__(before.of(draw.width()))
        self.projection = draw.one_of(PROJECTIONS)
        self.view, self.product = draw.one_of(VIEWS), draw.one_of(PRODUCTS)
        self.scale, self.mask = draw.one_of(SCALES), draw.one_of(MASKS)
        self.rotary = draw.one_of(["", "", "", "", "rotary", "partly rotary"])
        self.heads, self.head_dim = 2, inner.size // 2
        self.written_heads, self.written_dim = written(2), written(inner.base // 2)
        if self.view == "head size" or self.projection in ("grouped", "repeated"):
            self.view = "head size" if self.view == "heads" else self.view
            self.heads, self.head_dim = inner.size // 2, 2
            self.written_heads, self.written_dim = written(inner.base // 2), written(2)
        if self.projection == "own" and self.view != "literal":
            self.view = "attributes"
        self.how = ", ".join((self.projection, self.view, self.product, self.scale, self.mask))
        self.how += f", {self.rotary}" if self.rotary else ""
        inner.pins.append("what a unit of attention is depends on how the heads are viewed")
        if self.projection == "own":
            shape = 3, before.size, self.heads, self.head_dim
            self.weight = nn.Parameter(torch.randn(shape) / 3)
        self._make_layers(before, inner)
        self._make_tables(self.heads)

    def _make_layers(self, before: Layout, inner: Width) -> None:
        channels, size = before.size, inner.size
        if self.projection in ("separate", "grouped", "repeated"):
            fewer = 1 if self.projection == "separate" else 2
            self.q = nn.Linear(channels, size)
            self.k, self.v = (nn.Linear(channels, size // fewer) for _ in range(2))
            inner.makers.append(self.q)
        elif self.projection != "own":
            self.qkv = nn.Linear(channels, 3 * size)
            inner.makers.append(self.qkv)
        self.out = nn.Linear(size, self.after.size)
        self.after.made_by(self.out)

    def _make_tables(self, heads: int) -> None:
        if self.mask == "buffer":
            ones = torch.ones(LONGEST, LONGEST, dtype=torch.bool)
            self.register_buffer("seen", ones.tril())
            self.seen: Tensor
        if self.mask == "bias":
            self.bias = nn.Parameter(torch.randn(heads, LONGEST, LONGEST))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self._projected(x)
        if self.rotary:
            q, k = (_rotated(y, 4 if self.rotary == "partly rotary" else 2) for y in (q, k))
        mixed = self._mixed(q, k, v).transpose(1, 2)
        out: Tensor = self.out(mixed.reshape(batch, tokens, -1))
        return out

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of shape (batch, heads, tokens, head size)."""
        if self.projection == "own":
            q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in self.weight)
            return q, k, v
        if self.projection == "three":
            q, k, v = self._viewed(self.qkv(x).unflatten(-1, (3, -1))).unbind(2)
        elif self.projection == "chunk":
            q, k, v = map(self._viewed, self.qkv(x).chunk(3, -1))
        elif self.projection == "split":
            y = self.qkv(x)
            q, k, v = map(self._viewed, y.split(y.shape[-1] // 3, dim=-1))
        else:
            q = self._viewed(self.q(x))
            k, v = (self._viewed(layer(x), keys=True) for layer in (self.k, self.v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if self.projection == "repeated" or (self.projection == "grouped" and not self._is_sdpa):
            k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
        return q, k, v

    def _viewed(self, y: Tensor, keys: bool = False) -> Tensor:
        fewer = 2 if keys and self.projection in ("grouped", "repeated") else 1
        sizes = {
            "attributes": (self.heads // fewer, self.head_dim),
            "heads": (self.heads // fewer, -1),
            "head size": (-1, self.head_dim),
            "literal": (self.written_heads() // fewer, self.written_dim()),
        }
        return y.reshape(*y.shape[:-1], *sizes[self.view])

    @property
    def _is_sdpa(self) -> bool:
        return self.product == "sdpa"

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = q.shape[2]
        allowed: Tensor | None = None
        if self.mask == "buffer":
            allowed = self.seen[:tokens, :tokens]
        elif self.mask == "causal":
            allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
        elif self.mask == "bias":
            allowed = self.bias[:, :tokens, :tokens]
        scale = {
            "attribute": self.head_dim**-0.5,
            "shape": q.shape[-1] ** -0.5,
            "sqrt": 1 / math.sqrt(k.size(-1)),
            "literal": 0.5,
        }[self.scale]
        if self._is_sdpa:
            grouped = self.projection == "grouped"
            return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale, enable_gqa=grouped)
        if self.product == "bmm" and self.mask != "bias":
            batch, heads = q.shape[:2]
            q, k, v = (y.flatten(0, 1) for y in (q, k, v))
            weights = self._weights(torch.bmm(q * scale, k.transpose(1, 2)), allowed)
            return torch.bmm(weights, v).view(batch, heads, tokens, -1)
        if self.product == "einsum":
            weights = self._weights(torch.einsum("bhid,bhjd->bhij", q, k) * scale, allowed)
            return torch.einsum("bhij,bhjd->bhid", weights, v)
        return self._weights(q @ k.transpose(-2, -1) * scale, allowed) @ v

    def _weights(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        if allowed is None:
            return scores.softmax(-1)
        if allowed.dtype == torch.bool:
            return F.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)
        return torch.softmax(scores + allowed, dim=-1)


def _rotated(x: Tensor, parts: int) -> Tensor:
    """Turn two parts of each head by angles that grow with the position; the rest stays."""
    half = -(-x.shape[-1] // parts)
    places = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)
    speeds = 10.0 ** -torch.arange(half, device=x.device, dtype=x.dtype)
    angles = places[:, None] * speeds
    one, other = x[..., :half], x[..., half : 2 * half]
    turned = (one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos())
    return torch.cat([*turned, x[..., 2 * half :]], -1)


class TorchAttention(Step):
    """`nn.MultiheadAttention` or a whole layer of torch around it."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["self", "encoder layer", "memory"])
        before.pin("torch's attention divides its input into heads")
        if self.how == "encoder layer":
            noise = draw.one_of([0.0, 0.1])
            draw.is_random |= noise > 0
            hidden = draw.width()
            self.layer: nn.Module = nn.TransformerEncoderLayer(
                before.size, 2, hidden.size, noise, batch_first=True, norm_first=draw.chance(0.5)
            )
            hidden.makers.append(self.layer.linear1)
        else:
            bias = draw.chance(0.7)
            self.layer = nn.MultiheadAttention(before.size, 2, bias=bias, batch_first=True)

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and layout.base % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "encoder layer":
            out: Tensor = self.layer(x)
            return out
        memory = x if self.how == "self" else torch.cat([x, x.mean(1, keepdim=True)], 1)
        mixed: Tensor = self.layer(x, memory, memory, need_weights=False)[0]
        return mixed


class Summaries(Step):
    """Learned queries ask the tokens; what they hear is added to each of them."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        inner = draw.width()
        self.queries = nn.Parameter(torch.randn(3, inner.size))
        self.key, self.value = (
            nn.Linear(before.size, inner.size),
            nn.Linear(before.size, before.size),
        )
        inner.makers.append(self.key)
        before.made_by(self.value)
        self.how = draw.one_of(["matmul", "einsum"])

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "einsum":
            weights = torch.einsum("qc,btc->bqt", self.queries, self.key(x)).softmax(-1)
            return x + torch.einsum("bqt,btc->bqc", weights, self.value(x)).mean(1, keepdim=True)
        weights = (self.queries @ self.key(x).transpose(1, 2)).softmax(-1)
        heard: Tensor = weights @ self.value(x)
        return x + heard.mean(1, keepdim=True)


ATTENTION: tuple[type[Step], ...] = (Attention, Attention, Attention, TorchAttention, Summaries)
