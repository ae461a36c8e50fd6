"""Steps of random networks: layers, normalisations, activations, tables and guards."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.fuzzed_layouts import SIZES, Draw, Layout, Step, projection

LONGEST = 20
"""The number of rows of tables of positions."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "relu squared": lambda x: F.relu(x).square(),
    "clamped": lambda x: x.clamp(-1, 1),
}


class Dense(Step):
    """A linear layer, called as a module, as a function, or written out."""

    kinds = ("flat", "tokens")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before.of(draw.width()))
        self.how = draw.one_of(["module", "F.linear", "functional_call", "matmul", "einsum"])
        if self.how in ("matmul", "einsum"):
            size = self.after.size
            self.weight = nn.Parameter(torch.randn(before.size, size) * before.size**-0.5)
            self.bias = nn.Parameter(torch.randn(size) * 0.1)
            self.after.made_by(self.weight)
        else:
            self.layer = nn.Linear(before.size, self.after.size, bias=draw.chance(0.8))
            self.after.made_by(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "matmul":
            return torch.matmul(x, self.weight) + self.bias
        if self.how == "einsum":
            return torch.einsum("...i,io->...o", x, self.weight) + self.bias
        if self.how == "F.linear":
            return F.linear(x, self.layer.weight, self.layer.bias)
        if self.how == "functional_call":
            parameters: dict[str, Tensor] = dict(self.layer.named_parameters())
            called: Tensor = torch.func.functional_call(self.layer, parameters, (x,))
            return called
        out: Tensor = self.layer(x)
        return out


class Convolution(Step):
    """Plain, dilated, in two groups, or transposed."""

    kinds = ("series", "image")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before.of(draw.width()))
        self.how = draw.one_of(["plain", "pointwise", "dilated", "grouped", "transposed"])
        if self.how == "grouped" and (before.base % 2 or not before.is_simple):
            self.how = "plain"
        if self.how == "grouped":
            before.parts[0].width.divide("groups")
            self.after.parts[0].width.divide("groups")
        plane = before.kind == "image"
        sizes = before.size, self.after.size
        bias = draw.chance(0.7)
        if self.how == "transposed":
            transposed = nn.ConvTranspose2d if plane else nn.ConvTranspose1d
            self.layer: nn.Module = transposed(*sizes, 3, padding=1, bias=bias)
        else:
            kernel, padding = (1, 0) if self.how == "pointwise" else (3, 1)
            dilation = 1
            if self.how == "dilated":
                padding = dilation = 2
            groups = 2 if self.how == "grouped" else 1
            plain = nn.Conv2d if plane else nn.Conv1d
            self.layer = plain(*sizes, kernel, 1, padding, dilation, groups, bias)
        self.after.made_by(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Depthwise(Step):
    """One kernel for each channel; its number of groups is a size."""

    kinds = ("series", "image")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["module", "functional", "transposed"])
        plane = before.kind == "image"
        kind: type[nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d]
        if self.how == "transposed":
            kind = nn.ConvTranspose2d if plane else nn.ConvTranspose1d
        else:
            kind = nn.Conv2d if plane else nn.Conv1d
        self.layer = kind(before.size, before.size, 3, padding=1, groups=before.size)
        self.convolve = F.conv2d if plane else F.conv1d

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "functional":
            weight, bias = self.layer.weight, self.layer.bias
            return self.convolve(x, weight, bias, padding=1, groups=x.shape[1])
        out: Tensor = self.layer(x)
        return out


def _norm(draw: Draw, layout: Layout) -> nn.Module:
    size = layout.size
    batch_norm = nn.BatchNorm2d if layout.kind == "image" else nn.BatchNorm1d
    kinds: list[Callable[[], nn.Module]] = [lambda: nn.GroupNorm(1, size)]
    if layout.kind == "tokens":
        kinds = [lambda: nn.LayerNorm(size), lambda: nn.RMSNorm(size)]
    elif layout.kind == "flat":
        kinds = [lambda: batch_norm(size), lambda: nn.LayerNorm(size), lambda: nn.RMSNorm(size)]
    else:
        kinds += [lambda: batch_norm(size)] * 3
        if layout.kind == "image":
            kinds += [lambda: nn.InstanceNorm2d(size, affine=True)]
        if layout.base % 2 == 0 and layout.is_simple:
            kinds += [lambda: nn.GroupNorm(2, size)]
    layer = draw.one_of(kinds)()
    if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
        layout.parts[0].width.divide("norm")
    return layer


class Norm(Step):
    """A normalisation of torch, or the root mean square written out."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.layer = None
        if before.kind == "tokens" and draw.chance(0.2):
            self.how = "written out"
            self.gain = nn.Parameter(torch.rand(before.size) + 0.5)
        else:
            self.layer = _norm(draw, before)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is None:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gain
        out: Tensor = self.layer(x)
        return out


class Activation(Step):
    """An activation, with a slope for each channel or without."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of([*ACTIVATIONS])
        self.slopes = None
        if before.kind != "tokens" and draw.chance(0.15):
            self.slopes = nn.PReLU(before.size)

    def forward(self, x: Tensor) -> Tensor:
        if self.slopes is not None:
            out: Tensor = self.slopes(x)
            return out
        return ACTIVATIONS[self.how](x)


class Noise(Step):
    """Dropout of values or of whole channels."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        draw.is_random = True
        self.how = draw.one_of(["module", "functional"])
        channels = {"image": nn.Dropout2d, "series": nn.Dropout1d}
        kinds = [nn.Dropout, nn.AlphaDropout, channels.get(before.kind, nn.Dropout)]
        self.layer = draw.one_of(kinds)(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "functional":
            return F.dropout(x, 0.3, training=self.training)
        out: Tensor = self.layer(x)
        return out


class Scale(Step):
    """A gain and a shift for each channel, parameters of the network itself."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["x * gain + shift", "addcmul", "x + x * gain", "buffer"])
        places = () if before.dim == -1 else (1,) * len(before.space)
        shape = (before.size, *places)
        self.gain = nn.Parameter(torch.rand(shape) + 0.5)
        self.shift = nn.Parameter(torch.randn(shape) * 0.1)
        self.register_buffer("offset", torch.randn(shape))
        self.offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "addcmul":
            return torch.addcmul(self.shift, x, self.gain)
        if self.how == "x + x * gain":
            return x + x * self.gain + self.shift
        if self.how == "buffer":
            return (x - self.offset) * self.gain + self.shift
        return x * self.gain + self.shift


class Gated(Step):
    """A gated linear unit: one fused layer or two, divided in several ways."""

    kinds = ("flat", "tokens")

    def __init__(self, draw: Draw, before: Layout) -> None:
        hidden = draw.width()
        super().__init__(before.of(draw.width()))
        self.how = draw.one_of(["chunk", "split", "F.glu", "slices", "unflatten", "two layers"])
        self.name = draw.one_of(["sigmoid", "silu", "gelu"])
        self.hidden = hidden.size
        fused = 1 if self.how == "two layers" else 2
        self.into = nn.Linear(before.size, fused * hidden.size)
        self.gate = nn.Linear(before.size, hidden.size) if fused == 1 else None
        self.out = nn.Linear(hidden.size, self.after.size)
        hidden.makers.append(self.into)
        self.after.made_by(self.out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        if self.gate is not None:
            value, gate = y, self.gate(x)
        elif self.how == "chunk":
            value, gate = y.chunk(2, dim=-1)
        elif self.how == "split":
            value, gate = y.split(self.hidden, -1)
        elif self.how == "slices":
            half = y.shape[-1] // 2
            value, gate = y[..., :half], y[..., half:]
        elif self.how == "unflatten":
            value, gate = y.unflatten(-1, (2, -1)).unbind(-2)
        else:
            out: Tensor = self.out(F.glu(y))
            return out
        gated: Tensor = self.out(value * ACTIVATIONS[self.name](gate))
        return gated


class Recurrent(Step):
    """An LSTM, GRU or RNN over the tokens."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        hidden = draw.width((3, 4, 6))
        kind = draw.one_of([nn.LSTM, nn.GRU, nn.RNN])
        both = draw.chance(0.4)
        super().__init__(before.of(*([hidden] * (1 + both))))
        layers = draw.one_of([1, 2])
        self.layer = kind(before.size, hidden.size, layers, batch_first=True, bidirectional=both)
        self.after.made_by(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out


class Positions(Step):
    """Adds the first rows of a table that is longer than the example."""

    kinds = ("tokens",)

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["parameter", "embedding", "buffer", "from the end"])
        table = torch.randn(LONGEST, before.size) * 0.5
        if self.how == "embedding":
            self.embedding = nn.Embedding(*table.shape)
        elif self.how == "buffer":
            self.register_buffer("table", table[None])
        else:
            self.table = nn.Parameter(table[None])

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.how == "embedding":
            out: Tensor = x + self.embedding(torch.arange(length, device=x.device))
            return out
        if self.how == "from the end":
            return x + self.table[:, -length:]
        return x + self.table[:, :length]


class Twice(Step):
    """A layer that is called twice, or whose weight another layer shares or transposes."""

    kinds = ("flat", "tokens")

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["called twice", "transposed", "shared"])
        hidden = before.of(draw.width()) if self.how == "transposed" else before
        self.first = nn.Linear(before.size, hidden.size)
        hidden.made_by(self.first)
        if self.how == "shared":
            self.last = nn.Linear(before.size, before.size)
            self.last.weight = self.first.weight
            before.made_by(self.last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tanh(self.first(x))
        if self.how == "called twice":
            return torch.tanh(self.first(y))
        if self.how == "shared":
            out: Tensor = self.last(y)
            return out
        return y @ self.first.weight


class Guard(Step):
    """Raises on values that cannot be; the trace must run with values."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        super().__init__(before)
        self.how = draw.one_of(["isfinite", "isnan", "assert"])

    @classmethod
    def accepts(cls, layout: Layout) -> bool:
        return layout.kind in ("tokens", "image")

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "isfinite" and not torch.isfinite(x).all():
            raise ValueError("not finite")
        if self.how == "isnan" and torch.isnan(x).any():
            raise ValueError("not a number")
        if self.how == "assert":
            assert x.abs().max() < 1e6
        return x


class MLP(Step):
    """Two projections with an activation between them."""

    def __init__(self, draw: Draw, before: Layout) -> None:
        hidden = before.of(draw.width(SIZES))
        super().__init__(before.of(draw.width()))
        self.into, self.out = projection(before, hidden), projection(hidden, self.after)
        self.how = draw.one_of([*ACTIVATIONS])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(ACTIVATIONS[self.how](self.into(x)))
        return out


LAYERS: tuple[type[Step], ...] = (
    *(Dense, Convolution, Depthwise, Norm, Activation, Noise, Scale, Gated, Recurrent),
    *(Positions, Twice, Guard, MLP),
)
