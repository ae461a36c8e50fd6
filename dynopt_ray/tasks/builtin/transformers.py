"""A small transformer for rows of numbers, such as the rows of an image."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from dynopt_ray.tasks.builtin.models import LARGEST_WIDTH, MOST_LAYERS


class Attention(nn.Module):
    """Self-attention whose heads can have any size and number, whatever the width of the tokens.

    `nn.MultiheadAttention` ties the heads to the width of the tokens, so that only whole heads of
    all layers could be removed together.

    Args:
        width: the width of tokens (batch, tokens, width).
        num_heads: number of heads.
        head_size: coordinates of the queries, keys and values of each head.
    """

    def __init__(self, width: int, num_heads: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.query, self.key, self.value = (
            nn.Linear(width, num_heads * head_size) for _ in range(3)
        )
        self.out = nn.Linear(num_heads * head_size, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what each token reads from all tokens, (batch, tokens, width)."""
        shape = (*tokens.shape[:2], -1, self.head_size)
        query, key, value = (
            layer(tokens).view(shape).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        read = scaled_dot_product_attention(query, key, value)
        outputs: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return outputs


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a layer norm and added to its input.

    Args:
        width: the width of tokens.
        num_heads: attention heads.
        head_size: coordinates of each head.
        feedforward: the hidden width of the feed-forward network.
    """

    def __init__(self, width: int, num_heads: int, head_size: int, feedforward: int) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, head_size)
        self.into, self.out = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        outputs: Tensor = tokens + self.out(relu(self.into(self.norm2(tokens))))
        return outputs


class RowTransformer(nn.Module):
    """A transformer that classifies a short sequence of rows.

    Each row is mapped linearly to a token, together with a one-hot code of its position. Blocks
    follow. The mean of the tokens is mapped to the outputs. The position is an input of a layer,
    and not a table that is added to the tokens, so that criteria that observe the inputs of layers
    can score all weights.

    Args:
        num_rows: number of rows of an input (batch, num_rows, row_size).
        row_size: numbers per row.
        width: the width of tokens.
        num_heads: attention heads per block.
        feedforward: the hidden width of the feed-forward network of each block.
        num_blocks: number of blocks.
        num_outputs: columns of the output.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        row_size: int,
        width: int,
        num_heads: int,
        feedforward: int,
        num_blocks: int,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(row_size + num_rows, width)
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, width // num_heads, feedforward) for _ in range(num_blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs) for rows (batch, num_rows, row_size)."""
        places = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        places = places.expand(len(rows), -1, -1)
        tokens = self.blocks(self.embed(torch.cat([rows, places], dim=-1)))
        outputs: Tensor = self.out(self.norm(tokens).mean(1))
        return outputs


def row_transformer_factory(**sizes: int) -> Callable[[], RowTransformer]:
    """Return a factory of `RowTransformer` that can be pickled; the arguments are checked at once.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is out of range, or the heads do not divide the width.
    """
    for name, size in sizes.items():
        largest = MOST_LAYERS if name == "num_blocks" else LARGEST_WIDTH
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be a whole number, not {size!r}")
        if not 1 <= size <= largest:
            raise ValueError(f"{name} is {size}; it must be from 1 to {largest:,}")
    width, num_heads = sizes["width"], sizes["num_heads"]
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}, which does not divide the width {width}")
    return partial(RowTransformer, **sizes)
