"""Random networks: `network(number)` composes one of layers, branches, views and attention.

Everything about a network follows from its number. Every step is constructed for the layout of the
value that reaches it, so the shapes fit together. `python -m tests.structure.fuzzed_networks 17`
prints network 17; `fuzzed_properties` checks it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.structure.fuzzed_joins import draw_step
from tests.structure.fuzzed_layers import Convolution, Dense
from tests.structure.fuzzed_layouts import Draw, Kind, Layout, Part, Step, Width, projection
from tests.structure.fuzzed_views import VIEWS

NUM_WORDS, NUM_FEATURES, NUM_OUTPUTS = 11, 5, 3


@dataclass(frozen=True, eq=False)
class Network:
    """A random network and what is known about it.

    Attributes:
        number: the number that it follows from.
        model: the network, in its own dtype.
        widths: its widths, in the order in which they were drawn.
        any_length: whether it takes another number of tokens than the example has.
        is_random: whether it draws random numbers in training mode.
        heads: what a unit of attention is, for `trace`.
    """

    number: int
    model: "Composition"
    widths: list[Width]
    any_length: bool
    is_random: bool
    heads: Literal["heads", "dims"]

    def inputs(self, batch: int, seed: int = 0, longer: int = 0) -> Tensor:
        """Inputs of some batch size, and with more tokens than the example if that is possible."""
        chance = torch.Generator().manual_seed(seed)
        space = list(self.model.start.space)
        if self.any_length and self.model.start.kind in ("tokens", "series"):
            space[0] += longer
        if self.model.words is not None:
            return torch.randint(0, NUM_WORDS, (batch, *space), generator=chance)
        dtype = next(self.model.parameters()).dtype
        shape = (batch, *space, NUM_FEATURES)
        values = torch.randn(shape, generator=chance, dtype=torch.float64).to(dtype)
        if self.model.start.dim == -1:
            return values
        # Not channels last: torch 2.13 crashes in the backward pass of a GroupNorm that reads them.
        return values.movedim(-1, 1).contiguous()

    def __str__(self) -> str:
        dtype = next(self.model.parameters()).dtype
        inputs = tuple(self.inputs(2).shape)
        return f"network {self.number}, {dtype}, {self.heads}, inputs {inputs}:\n{self.model}"


class Composition(nn.Module):
    """Some steps, one after the other, and a layer that makes the outputs."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        kind: Kind = draw.one_of(["flat", "tokens", "tokens", "tokens", "series", "image"])
        spaces: dict[Kind, list[tuple[int, ...]]] = {"flat": [()], "image": [(4, 4), (6, 4)]}
        space = draw.one_of(spaces.get(kind, [(4,), (6,)]))
        data = Width(NUM_FEATURES, NUM_FEATURES, pins=["the inputs"])
        self.start = layout = Layout(kind, (Part(data),), space)
        self.words = None
        if kind == "tokens" and draw.chance(0.4):
            self.start = layout = layout.of(draw.width())
            self.words = nn.Embedding(NUM_WORDS, layout.size)
            layout.made_by(self.words)
        self.steps = nn.ModuleList()
        if self.words is None and draw.chance(0.8):
            first: type[Step] = Dense if layout.dim == -1 else Convolution
            self.steps.append(step := first.drawn(draw, layout))
            layout = step.after
        for _ in range(draw.one_of([1, 2, 3, 4, 5, 6, 7])):
            self.steps.append(step := draw_step(draw, layout, keeps_places=False, others=VIEWS))
            layout = step.after
        outputs = layout.of(Width(NUM_OUTPUTS, NUM_OUTPUTS, pins=["the outputs"]))
        self.is_tied = self.words is not None and layout.dim == -1 and draw.chance(0.5)
        self.head = projection(
            layout, layout.of(self.start.parts[0].width) if self.is_tied else outputs
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.words is not None:
            x = self.words(x)
        for step in self.steps:
            x = step(x)
        out: Tensor = self.head(x)
        return out @ self.words.weight.T if self.words is not None and self.is_tied else out


def network(number: int, wider: Mapping[int, int] | None = None) -> Network:
    """Construct a network; its widths with the numbers in `wider` are larger by their values."""
    draw = Draw(number, wider or {})
    torch.manual_seed(number)
    model = Composition(draw)
    dtype = draw.one_of([torch.float64, torch.float64, torch.float32])
    return Network(
        number, model.to(dtype), draw.widths, draw.any_length, draw.is_random, draw.heads
    )


if __name__ == "__main__":
    print(network(int(sys.argv[1])))
