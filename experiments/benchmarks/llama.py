"""A decoder built like Llama: rotary positions, RMSNorm, gated MLPs, grouped queries."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Llama(nn.Module):
    """A Llama with 7 billion parameters by default, which is made on the meta device.

    It maps tokens (B, T) to logits (B, T, num_tokens).
    """

    def __init__(
        self,
        *,
        num_tokens: int = 32_000,
        width: int = 4096,
        num_blocks: int = 32,
        num_heads: int = 32,
        num_key_heads: int = 32,
        hidden: int = 11_008,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_tokens, width)
        self.blocks = nn.ModuleList(
            _Block(width, num_heads, num_key_heads, hidden) for _ in range(num_blocks)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, num_tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position."""
        x_BTD = self.embed(tokens)
        head_width = self.blocks[0].attention.head_width
        cos, sin = _rotations(tokens.shape[1], head_width, tokens.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin)
        logits: Tensor = self.head(self.norm(x_BTD))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, num_key_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = _Attention(width, num_heads, num_key_heads)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm(x_BTD), cos, sin)
        y_BTD = self.mlp_norm(x_BTD)
        out: Tensor = x_BTD + self.down(F.silu(self.gate(y_BTD)) * self.up(y_BTD))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, num_key_heads: int) -> None:
        super().__init__()
        self.head_width = width // num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, num_key_heads * self.head_width, bias=False)
        self.v = nn.Linear(width, num_key_heads * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (
            layer(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y_BHTE = F.scaled_dot_product_attention(
            _rotated(q_BHTE, cos, sin),
            _rotated(k_BHTE, cos, sin),
            v_BHTE,
            is_causal=True,
            enable_gqa=q_BHTE.shape[1] != k_BHTE.shape[1],
        )
        out: Tensor = self.out(y_BHTE.transpose(1, 2).flatten(2))
        return out


def _rotations(num_positions: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 10_000.0 ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(num_positions, device=device)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotated(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, other = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos + torch.cat([-other, one], dim=-1) * sin
