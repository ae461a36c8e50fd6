"""Steps of random networks: views, pools and tables that change the kind or the places."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.fuzzed_layouts import Draw, Layout, Part, Step, written


class View(Step):
    """A step after which the value has another kind or other places."""

    keeps_places: ClassVar[bool] = False


class TokensToSeries(View):
    """Channels before tokens."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout("series", before.parts, before.space))
        self.how = draw.one_of(["transpose", "permute", "movedim", "mT", "einsum"])

    def forward(self, x: Tensor) -> Tensor:
        return _swapped(x, self.how)


class SeriesToTokens(View):
    """Channels after tokens."""

    kinds = ("series",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout("tokens", before.parts, before.space))
        self.how = draw.one_of(["transpose", "permute", "movedim", "mT", "einsum"])

    def forward(self, x: Tensor) -> Tensor:
        return _swapped(x, self.how)


def _swapped(x: Tensor, how: str) -> Tensor:
    if how == "permute":
        return x.permute(0, 2, 1)
    if how == "movedim":
        return x.movedim(1, -1)
    if how == "mT":
        return x.mT.contiguous()
    if how == "einsum":
        return torch.einsum("bij->bji", x)
    return x.transpose(1, 2)


class ImageToTokens(View):
    """Every place is a token."""

    kinds = ("image",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        height, width = before.space
        super().__init__(Layout("tokens", before.parts, (height * width,)))
        self.how = draw.one_of(["flatten", "reshape", "attribute", "literal"])
        self.channels, self.literal = before.size, written(before.base)

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and layout.space[0] * layout.space[1] <= 16

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flatten":
            return x.flatten(2).transpose(1, 2)
        if self.how == "reshape":
            batch, channels, height, width = x.shape
            return x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        channels = self.channels if self.how == "attribute" else self.literal()
        return x.movedim(1, -1).reshape(len(x), -1, channels)


class TokensToImage(View):
    """Four tokens make an image of 2 x 2."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout("image", before.parts, (2, 2)))
        self.how = draw.one_of(["unflatten", "view"])
        draw.any_length = False

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and layout.space == (4,)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "unflatten":
            return torch.unflatten(x.transpose(1, 2), 2, (2, 2))
        return x.mT.reshape(x.shape[0], x.shape[2], 2, 2)


class Flatten(View):
    """All places beside each other, in several spellings."""

    kinds = ("image", "series", "tokens")

    def __init__(self, draw: Draw, before: Layout) -> None:
        places = torch.Size(before.space).numel()
        parts = tuple(Part(part.width, part.copies * places) for part in before.parts)
        super().__init__(Layout("flat", parts))
        self.how = draw.one_of(["flatten", "view", "attribute", "literal", "module", "product"])
        self.flat, self.literal = self.after.size, written(self.after.base)
        draw.any_length = False

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and torch.Size(layout.space).numel() <= 20

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flatten":
            return x.flatten(1)
        if self.how == "module":
            out: Tensor = nn.Flatten()(x)
            return out
        if self.how == "view":
            return x.reshape(x.size(0), -1)
        if self.how == "product":
            return x.reshape(-1, x[0].numel())
        return x.reshape(-1, self.flat if self.how == "attribute" else self.literal())


class Pooled(View):
    """One value for each channel."""

    kinds = ("image", "series", "tokens")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout("flat", before.parts))
        self.how = draw.one_of(["mean", "amax", "last", "logsumexp", "sum"])
        self.places = (1,) if before.kind == "tokens" else tuple(range(2, 2 + len(before.space)))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "last":
            for place in reversed(self.places):
                x = x.select(place, -1)
            return x
        if self.how == "amax":
            return x.amax(self.places)
        if self.how == "logsumexp":
            return torch.logsumexp(x, self.places)
        return x.sum(self.places) * 0.2 if self.how == "sum" else x.mean(self.places)


class Smaller(View):
    """Half as many places in each direction."""

    kinds = ("image", "series")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout(before.kind, before.parts, tuple(n // 2 for n in before.space)))
        plane = before.kind == "image"
        self.how = draw.one_of(["max", "average", "stride", "interpolate"])
        kinds = {
            "max": nn.MaxPool2d if plane else nn.MaxPool1d,
            "average": nn.AvgPool2d if plane else nn.AvgPool1d,
        }
        self.pool = kinds.get(self.how, nn.Identity)(2)
        draw.any_length = draw.any_length and plane

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and all(n % 2 == 0 for n in layout.space)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "stride":
            return x[..., ::2, ::2] if x.ndim == 4 else x[..., ::2]
        if self.how == "interpolate":
            return F.interpolate(x, scale_factor=0.5)
        out: Tensor = self.pool(x)
        return out


class ClassToken(View):
    """One learned token before all others."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout("tokens", before.parts, (before.space[0] + 1,)))
        self.token = nn.Parameter(torch.randn(1, 1, before.size))
        self.how = draw.one_of(["expand", "repeat", "pad"])

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return super().accepts(layout) and layout.space[0] <= 17

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "pad":
            first = torch.zeros_like(x[:, :1]) + self.token
        elif self.how == "repeat":
            first = self.token.repeat(len(x), 1, 1)
        else:
            first = self.token.expand(x.shape[0], -1, -1)
        return torch.cat([first, x], 1)


class Mixer(View):
    """A perceptron over the tokens of each channel, which fixes their number."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        hidden = draw.width()
        self.into = nn.Linear(before.space[0], hidden.size)
        self.out = nn.Linear(hidden.size, before.space[0])
        hidden.makers.append(self.into)
        draw.any_length = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(F.gelu(self.into(x.transpose(1, 2))))
        return x + y.transpose(1, 2)


class Expanded(View):
    """The same value at three places."""

    kinds = ("flat",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(Layout("tokens", before.parts, (3,)))
        self.how = draw.one_of(["expand", "repeat", "stack"])

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "repeat":
            return x.unsqueeze(1).repeat(1, 3, 1)
        if self.how == "stack":
            return torch.stack([x, x * 0.5, x.tanh()], 1)
        return x[:, None].expand(-1, 3, -1)


VIEWS: tuple[type[Step], ...] = (
    *(TokensToSeries, SeriesToTokens, ImageToTokens, TokensToImage, Flatten, Pooled, Smaller),
    *(ClassToken, Mixer, Expanded),
)
