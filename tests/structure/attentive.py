"""Small networks that attend, as the blocks of well-known transformers do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Heads(nn.Module):
    """Queries, keys and values of 3 heads with 4 coordinates, from a width of 7."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.q, self.k, self.v = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(7, 12)
        self.out = nn.Linear(12, 5)

    def split(self, x: Tensor) -> list[Tensor]:
        """Each (batch, heads, tokens, coordinates)."""
        shape = (*x.shape[:2], -1, self.head_dim)
        return [layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v)]

    def merged(self, x: Tensor) -> Tensor:
        """What the heads give, averaged over tokens."""
        out: Tensor = self.out(x.transpose(1, 2).flatten(2)).mean(1)
        return out


class Coincidence(nn.Module):
    """Several attributes hold the same number, each for another reason (GPT-2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = self.split_size = 12
        self.num_heads, self.num_layers, self.head_dim = 3, 3, 4
        self.embed = nn.Linear(7, 12)
        self.into, self.out = nn.Parameter(torch.randn(12, 36) / 3), nn.Linear(12, 12)
        self.shift = nn.Parameter(torch.randn(36))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        flat = torch.addmm(self.shift, mat1=x.view(-1, self.embed_dim), mat2=self.into)
        parts = torch.split(flat.view(*x.shape[:2], -1), self.split_size, dim=2)
        shape = (*x.shape[:2], self.num_heads, self.split_size // self.num_heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(-2, -1) * self.num_layers**-0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        out: Tensor = self.head(x + self.out(mixed)).mean(1)
        return out


class OneSetting(nn.Module):
    """Two attentions whose heads one attribute counts: they come and go together."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.first, self.second = nn.Linear(7, 36), nn.Linear(7, 36)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        mixed = []
        for layer in (self.first, self.second):
            heads = layer(x).view(*x.shape[:2], 3 * self.num_heads // self.num_heads, -1)
            query, key, value = (
                part.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
                for part in heads.unbind(2)
            )
            attended = F.scaled_dot_product_attention(query, key, value)
            mixed.append(attended.transpose(1, 2).flatten(2))
        out: Tensor = self.out(torch.cat(mixed, -1)).mean(1)
        return out


class BiasTable(_Heads):
    """Biases by relative position (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(3, 9))
        self.register_buffer("offsets", torch.arange(5)[:, None] - torch.arange(5) + 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        offsets = self.get_buffer("offsets")
        bias = self.biases[:, offsets]
        return self.merged((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v)


class Rotary(_Heads):
    """Positions turn queries and keys; a norm over the coordinates of each head (Qwen 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        places = torch.arange(x.shape[1], device=x.device)
        angles = torch.outer(places, torch.tensor([1.0, 0.3], device=x.device)).repeat(1, 2)

        def turned(y: Tensor) -> Tensor:
            y = self.norm(y)
            half = torch.cat([-y[..., 2:], y[..., :2]], dim=-1)
            return y * angles.cos() + half * angles.sin()

        return self.merged((turned(q) @ turned(k).transpose(-2, -1)).softmax(-1) @ v)


class AlongChannels(_Heads):
    """Each head's coordinates attend to one another (XCiT, DaViT), with one scale per head."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.rand(3, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (F.normalize(q, dim=-2).transpose(-2, -1) @ k * self.temperature).softmax(-1)
        return self.merged((weights @ v.transpose(-2, -1)).transpose(-2, -1))


class Linear(_Heads):
    """Without softmax; a coordinate of ones counts what is divided by (EfficientViT)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        v = F.pad(v, (0, 1), value=1.0)
        out = F.relu(q) @ (F.relu(k).transpose(-2, -1) @ v)
        return self.merged(out[..., :-1] / (out[..., -1:] + 0.1))


class HeadsInBatch(_Heads):
    """Batch and heads in one dimension, a mask made inside forward (DeBERTa, OPT)."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:2], device=x.device)
        x = x * mask[..., None]
        shape = (len(x) * self.num_heads, x.shape[1], self.head_dim)
        q, k, v = (part.reshape(shape) for part in self.split(x))
        scores = torch.bmm(q, k.transpose(1, 2)).view(len(x), -1, x.shape[1], x.shape[1])
        weights = scores.masked_fill(~mask[:, None, None].bool(), -1e9).softmax(-1)
        mixed = torch.bmm(weights.view(-1, x.shape[1], x.shape[1]), v)
        return self.merged(mixed.view(len(x), -1, x.shape[1], self.head_dim))


class ClassToken(nn.Module):
    """A token of its own in front of the others, a table of positions, one size only read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 10)
        self.token = nn.Parameter(torch.randn(1, 1, 10))
        self.places = nn.Parameter(torch.randn(1, 6, 10))
        self.hidden = nn.Linear(10, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch = len(x[:, :, -1])
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.places
        x = torch.tanh(self.hidden(x))
        out: Tensor = self.head(x[:, 0] + x.mean(1))
        return out
