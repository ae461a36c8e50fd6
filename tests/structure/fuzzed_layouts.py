"""What the generator of random networks knows of the value that runs through a network."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self, TypeVar

from torch import Tensor, nn

Kind = Literal["flat", "tokens", "series", "image"]
"""(batch, channels), (batch, tokens, channels), (batch, channels, time), (…, height, width)."""

T = TypeVar("T")
SIZES = (4, 6, 8, 12)


@dataclass(eq=False)
class Width:
    """A number of channels that the network's author chose.

    Attributes:
        base: the number that all random decisions and all numbers written into code depend on.
        size: the number that layers are constructed with; other than `base` if a network is
            constructed wider by hand.
        makers: the modules and parameters that produce these channels.
        pins: why another number would change the meaning of the network.
        divided: by which operations the channels are divided in two.
        is_half: whether it is half of another width.
    """

    base: int
    size: int
    makers: list[object] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    divided: set[str] = field(default_factory=set)
    is_half: bool = False

    def half(self) -> "Width":
        """Half of the channels; all else that is known of them is known of the whole."""
        return Width(self.base // 2, self.size // 2, self.makers, self.pins, self.divided, True)

    def divide(self, how: str) -> None:
        """Note that an operation divides the channels in groups, which must be those of others."""
        if self.divided and not self.divided | {how} <= {"halves", "groups"}:
            self.pins.append("it is divided in groups in different ways")
        if self.is_half:
            self.pins.append("it is divided in quarters")
        self.divided.add(how)


@dataclass(frozen=True, eq=False)
class Part:
    """Adjacent channels: every channel of a width, `copies` times each."""

    width: Width
    copies: int = 1


@dataclass(frozen=True, eq=False)
class Layout:
    """The dimensions of a running value: its channels part by part, and its places."""

    kind: Kind
    parts: tuple[Part, ...]
    space: tuple[int, ...] = ()

    @property
    def base(self) -> int:
        return sum(part.width.base * part.copies for part in self.parts)

    @property
    def size(self) -> int:
        return sum(part.width.size * part.copies for part in self.parts)

    @property
    def is_simple(self) -> bool:
        """Whether its channels are those of one width, once."""
        return len(self.parts) == 1 and self.parts[0].copies == 1

    @property
    def dim(self) -> int:
        """The dimension of the channels."""
        return -1 if self.kind in ("flat", "tokens") else 1

    def of(self, *widths: Width) -> "Layout":
        """The same places with the channels of other widths."""
        return replace(self, parts=tuple(map(Part, widths)))

    def made_by(self, maker: object) -> None:
        for part in self.parts:
            part.width.makers.append(maker)

    def pin(self, reason: str) -> None:
        for part in self.parts:
            part.width.pins.append(reason)


class Draw:
    """The random decisions of one network, and what they imply for its inputs.

    Attributes:
        widths: all widths, in the order in which they were drawn.
        any_length: whether the number of tokens of the input may differ from the example's.
        is_random: whether the network draws random numbers in training mode.
        heads: what a unit of attention is.
        depth: the number of branches around the step that is drawn.
    """

    def __init__(self, seed: int, added: Mapping[int, int]) -> None:
        self.random = random.Random(seed)
        self.added = added
        self.widths: list[Width] = []
        self.any_length = True
        self.is_random = False
        self.heads: Literal["heads", "dims"] = "dims" if self.chance(0.2) else "heads"
        self.depth = 0

    def one_of(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def width(self, sizes: Sequence[int] = SIZES) -> Width:
        base = self.one_of(sizes)
        width = Width(base, base + self.added.get(len(self.widths), 0))
        self.widths.append(width)
        return width


class Step(nn.Module):
    """One step of a random network: it is constructed for a layout and gives another.

    Attributes:
        kinds: the layouts that it accepts.
        keeps_places: whether the result has the kind and places of the input.
        after: the layout of the result.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("flat", "tokens", "series", "image")
    keeps_places: ClassVar[bool] = True

    def __init__(self, after: Layout) -> None:
        super().__init__()
        self.after = after
        self.how = ""

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return layout.kind in cls.kinds

    @classmethod
    def drawn(cls, draw: Draw, layout: Layout) -> Self:
        """Construct a step; those that are drawn take a draw and a layout."""
        make: Callable[[Draw, Layout], Self] = cls
        return make(draw, layout)

    def extra_repr(self) -> str:
        """Name the decisions that the modules within do not show."""
        return self.how

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def written(number: int) -> Callable[[], int]:
    """A number that is written into the code, so that no attribute has it."""
    return lambda: number


def projection(before: Layout, after: Layout) -> nn.Module:
    """A layer that makes any channels of any others, at each place."""
    layer: nn.Module
    if before.kind == "series":
        layer = nn.Conv1d(before.size, after.size, 1)
    elif before.kind == "image":
        layer = nn.Conv2d(before.size, after.size, 1)
    else:
        layer = nn.Linear(before.size, after.size)
    after.made_by(layer)
    return layer
