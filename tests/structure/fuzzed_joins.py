"""Steps of random networks: branches and joins of all that keeps its places."""

import torch
from torch import Tensor, nn

from tests.structure.fuzzed_attention import ATTENTION
from tests.structure.fuzzed_layers import ACTIVATIONS, LAYERS
from tests.structure.fuzzed_layouts import Draw, Layout, Part, Step, projection, written

DEEPEST = 2


class Chain(Step):
    """Random steps that keep the places, and a projection to a given layout."""

    def __init__(self, draw: Draw, before: Layout, to: Layout | None = None) -> None:
        draw.depth += 1
        layout, steps = before, []
        for _ in range(draw.one_of([0, 1, 1, 2])):
            step = draw_step(draw, layout, keeps_places=True)
            layout = step.after
            steps.append(step)
        draw.depth -= 1
        super().__init__(layout if to is None else to)
        self.steps = nn.ModuleList(steps)
        self.last = nn.Identity() if to is None else projection(layout, to)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        out: Tensor = self.last(x)
        return out


class Residual(Step):
    """A branch that is added to its input, in several spellings."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.branch = Chain(draw, before, before)
        self.how = draw.one_of(["+", "in place", "alpha", "learned", "minus", "sum of list"])
        self.weight = nn.Parameter(torch.full((), 0.5)) if self.how == "learned" else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        if self.how == "in place":
            y += x
            return y
        if self.how == "alpha":
            return torch.add(x, y, alpha=0.5)
        if self.how == "minus":
            return x - y
        if self.how == "sum of list":
            return torch.stack([x, y]).sum(0)
        return x + y if self.weight is None else torch.lerp(x, y, self.weight)


class Concatenation(Step):
    """Branches beside each other, or a branch beside its input."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        first = Chain(draw, before, before.of(draw.width()))
        second = Chain(draw, before, before.of(draw.width())) if draw.chance(0.4) else None
        parts = before.parts if second is None else second.after.parts
        super().__init__(Layout(before.kind, (*first.after.parts, *parts), before.space))
        self.first, self.second = first, second

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return layout.base <= 40

    def forward(self, x: Tensor) -> Tensor:
        values = [self.first(x), x if self.second is None else self.second(x)]
        return torch.cat(values, self.after.dim)


class Product(Step):
    """Branches that are multiplied, one of them squashed."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before.of(draw.width()))
        self.value = Chain(draw, before, self.after)
        self.gate = Chain(draw, before, self.after)
        self.how = draw.one_of(["sigmoid", "tanh", "silu"])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.value(x) * ACTIVATIONS[self.how](self.gate(x))
        return out


class Stacked(Step):
    """Branches in a dimension of their own, which is summed, averaged or weighted away."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before.of(draw.width()))
        self.branches = nn.ModuleList(Chain(draw, before, self.after) for _ in range(2))
        self.how = draw.one_of(["sum", "mean", "max", "weighted", "einsum"])
        self.weights = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        values = [branch(x) for branch in self.branches]
        if self.how == "sum":
            return torch.stack(values, 1).sum(1)
        if self.how == "mean":
            return torch.stack(values, -1).mean(-1)
        if self.how == "max":
            return torch.stack(values).amax(0)
        weights = self.weights.softmax(0)
        if self.how == "einsum":
            return torch.einsum("s,s...->...", weights, torch.stack(values))
        weighted: Tensor = weights[0] * values[0] + weights[1] * values[1]
        return weighted


class Halves(Step):
    """Divides the channels in two halves, of which one takes a branch."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        before.parts[0].width.divide("halves")
        half = before.parts[0].width.half()
        branch = Chain(draw, before.of(half), before.of(draw.width()))
        super().__init__(before.of(branch.after.parts[0].width, half))
        self.branch = branch
        self.how = draw.one_of(["chunk", "tensor_split", "split", "narrow"])

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return layout.is_simple and layout.base % 2 == 0 and layout.base > 4

    def forward(self, x: Tensor) -> Tensor:
        dim = self.after.dim
        half = x.shape[dim] // 2
        if self.how == "chunk":
            one, other = x.chunk(2, dim)
        elif self.how == "tensor_split":
            one, other = x.tensor_split(2, dim)
        elif self.how == "split":
            one, other = torch.split(x, half, dim)
        else:
            one, other = x.narrow(dim, 0, half), x.narrow(dim, half, half)
        return torch.cat([self.branch(one), other], dim)


class Excitation(Step):
    """A gate for each channel, from the means over places."""

    kinds = ("series", "image", "tokens")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        flat = Layout("flat", before.parts)
        hidden = flat.of(draw.width())
        self.reduce, self.expand = projection(flat, hidden), projection(hidden, flat)
        self.how = draw.one_of(["relu", "silu"])

    def forward(self, x: Tensor) -> Tensor:
        places = tuple(d for d in range(1, x.ndim) if d != self.after.dim % x.ndim)
        gate = torch.sigmoid(self.expand(ACTIVATIONS[self.how](self.reduce(x.mean(places)))))
        for d in places:
            gate = gate.unsqueeze(d)
        return x * gate


class Shuffle(Step):
    """Interleaves two halves of the channels."""

    kinds = ("image", "series")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(
            ["view", "unflatten", "module"] if before.kind == "image" else ["view"]
        )
        self.module = nn.ChannelShuffle(2)
        before.parts[0].width.divide("shuffle")

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and layout.is_simple and layout.base % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "module":
            out: Tensor = self.module(x)
            return out
        if self.how == "unflatten":
            return torch.unflatten(x, 1, (2, -1)).transpose(1, 2).flatten(1, 2)
        batch, channels = x.shape[:2]
        x = x.view(batch, 2, channels // 2, *x.shape[2:]).transpose(1, 2)
        return x.reshape(batch, channels, *x.shape[3:])


class PixelShuffle(Step):
    """Four channels make the pixels of one, which are averaged again."""

    kinds = ("image",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        width = draw.width((3, 4, 6))
        super().__init__(before.of(width))
        wide = Layout(before.kind, (Part(width, 4),), before.space)
        self.into = projection(before, wide)
        self.shuffle, self.pool = nn.PixelShuffle(2), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(torch.tanh(self.shuffle(self.into(x))))
        return out


class PerHead(Step):
    """Views the channels as heads, and has a parameter for each of them."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["two heads", "attribute", "literal", "of two", "mixed"])
        self.heads, self.head_dim, self.literal = 2, before.size // 2, written(before.base // 2)
        if self.how in ("of two", "mixed"):
            self.heads, self.head_dim = before.size // 2, 2
            before.parts[0].width.divide("heads")
        if self.how != "of two" or draw.heads == "dims":
            before.pin("each of a number of heads has a parameter, or heads are mixed")
        self.gain = nn.Parameter(torch.rand(self.heads, 1) + 0.5)
        if self.how == "mixed":
            self.mix = nn.Parameter(torch.randn(self.heads, self.heads) * self.heads**-0.5)

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and layout.is_simple and layout.base % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        sizes = {
            "two heads": (2, -1),
            "attribute": (2, self.head_dim),
            "literal": (2, self.literal()),
            "of two": (-1, 2),
            "mixed": (self.heads, self.head_dim),
        }
        y = x.view(batch, tokens, *sizes[self.how])
        if self.how == "mixed":
            y = torch.einsum("bthd,hg->btgd", y, self.mix)
        return (y * self.gain).reshape(batch, tokens, channels)


JOINS: tuple[type[Step], ...] = (
    *(Residual, Residual, Concatenation, Product, Stacked, Halves, Excitation, Shuffle),
    *(PixelShuffle, PerHead),
)


def draw_step(
    draw: Draw, layout: Layout, *, keeps_places: bool, others: tuple[type[Step], ...] = ()
) -> Step:
    """A random step that the layout allows; few of those that hold others, deep within."""
    joins = JOINS if draw.depth < DEEPEST else JOINS[5:]
    families = [*[LAYERS] * 3, *[joins] * 2, *[ATTENTION] * 2]
    if not keeps_places:
        families += [others] * 2
    while True:
        kind = draw.one_of(draw.one_of(families))
        if kind.accepts(layout):
            return kind.drawn(draw, layout)
