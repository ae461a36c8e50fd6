"""Small networks, one for each way in which widths hang together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure import attentive


@dataclass(frozen=True)
class Sample:
    """A network, what it is called with, and the widths that tracing must find."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    widths: dict[str, int]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Dense(nn.Module):
    """Every layer reads all that came before, concatenated (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        out: Tensor = self.head(torch.cat(features, 1).mean((2, 3)))
        return out


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.conv2 = nn.Conv2d(12, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.relu(self.stem(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        x = x.reshape(batch, channels, height, width)
        out: Tensor = self.head(F.relu(self.conv2(x)).mean((2, 3)))
        return out


class Excite(nn.Module):
    """A gate that multiplies channels, and a scale that the network owns itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.reduce = nn.Linear(8, 4)
        self.expand = nn.Linear(4, 8)
        self.gamma = nn.Parameter(torch.full((1, 8, 1, 1), 0.7))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3))))))
        x = x * gate[:, :, None, None] * self.gamma
        out: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(x), 1), 1))
        return out


class Sizes(nn.Module):
    """Keeps a width in an attribute of its own, which its forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = 4 * 36
        self.unrelated = 4
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(self.flat, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.conv(x)).view(-1, self.flat))
        return out


class Attention(nn.Module):
    """Heads in one fused projection, their number in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.head_dim = 4
        self.embed = nn.Linear(7, 10)
        self.qkv = nn.Linear(10, 36)
        self.out = nn.Linear(12, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        weights = (query @ key.transpose(-2, -1) * 4**-0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, -1)
        out: Tensor = self.head((x + self.out(mixed)).mean(1))
        return out


class Text(nn.Module):
    """An embedding, gated linear units from one fused layer, tokens averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.fused = nn.Linear(6, 16)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        value, gate = self.fused(x).chunk(2, dim=-1)
        out: Tensor = self.head((x + self.down(value * F.silu(gate))).mean(1))
        return out


class Product(nn.Module):
    """Weights that the network owns itself and multiplies with by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(7, 12)
        self.middle = nn.Parameter(torch.randn(12, 6) / 3)
        self.shift = nn.Parameter(torch.randn(6))
        self.last = nn.Parameter(torch.randn(6, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.relu(self.hidden(x)) @ self.middle + self.shift)
        return x @ self.last


class PerHead(nn.Module):
    """One weight for each head, by `einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(3, 7, 4) / 3)
        self.out = nn.Parameter(torch.randn(3, 4, 6) / 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("btd,hde->bthe", x, self.into))
        out: Tensor = self.head(torch.einsum("bthe,hef->btf", x, self.out).mean(1))
        return out


class Flash(nn.Module):
    """Grouped-query attention: two query heads share a key head; sizes come from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_heads, self.head_dim = 6, 3, 4
        self.q, self.k, self.v = nn.Linear(10, 24), nn.Linear(10, 12), nn.Linear(10, 12)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        shape = (batch, tokens, -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1).mean(1))
        return out


class Recurrent(nn.Module):
    """Two layers in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.embed(x))[0][:, -1])
        return out


class Ghost(nn.Module):
    """Cheap copies of half the channels, cut to a number that the module keeps (GhostNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 12
        self.primary, self.cheap = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.primary(x))
        x = torch.cat([x, F.relu(self.cheap(x))], 1)[:, : self.out_channels]
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Selective(nn.Module):
    """Paths of different kernels, weighted channel by channel (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_channels = 6
        self.paths = nn.ModuleList(nn.Conv2d(3, 6, k, padding=k // 2) for k in (1, 3))
        self.reduce, self.select = nn.Linear(6, 4), nn.Linear(4, 12)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([path(x) for path in self.paths], 1)
        weights = self.select(torch.tanh(self.reduce(y.sum(1).mean((2, 3)))))
        weights = weights.view(len(x), 2, self.num_channels, 1, 1).softmax(1)
        out: Tensor = self.head((y * weights).sum(1).mean((2, 3)))
        return out


class Causal(nn.Module):
    """Depthwise over time with a kernel taken out of its layer (Mamba)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 6)
        self.conv = nn.Conv1d(6, 6, 3, groups=6)
        self.mix = nn.Conv1d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x)).transpose(1, 2)
        kernel = self.conv.weight.squeeze(1)
        x = F.conv1d(F.pad(x, (2, 0)), kernel.unsqueeze(1), self.conv.bias, groups=x.shape[1])
        out: Tensor = self.head(F.relu(self.mix(F.relu(x))).mean(2))
        return out


def _image() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def _tokens() -> Tensor:
    return torch.randn(4, 5, 7)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5))


def _vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 16, 10), nn.ReLU(), nn.Linear(10, 5)),
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), Residual(6, 6, 1), Residual(6, 8, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def _mobile() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6()),
        *(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6()),
        *(nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.Hardswish()),
        *(nn.Conv2d(12, 7, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(28, 5),
    )


def _group_norm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 6, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 16, 5)),
    )


def _series() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(3, 8, 3, stride=2), nn.BatchNorm1d(8), nn.GELU(), nn.Conv1d(8, 6, 2)),
        *(nn.LeakyReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(6 * 3, 5)),
    )


def _decoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, stride=2)),
        *(nn.ReLU(), nn.ConvTranspose2d(6, 16, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.PixelShuffle(2), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)),
    )


NETWORKS: dict[str, Sample] = {
    "mlp": Sample(_mlp, lambda: torch.randn(4, 7), {"0": 12, "2": 9}),
    "vgg": Sample(_vgg, _image, {"0": 6, "3": 8, "9": 10}),
    "resnet": Sample(_resnet, _image, {"0": 6, "1.conv1": 6, "2.conv1": 8, "2.conv2": 8}),
    "dense": Sample(Dense, _image, {"stem": 6, "convs.0": 4, "convs.1": 4, "convs.2": 4}),
    "mobile": Sample(_mobile, _image, {"0": 6, "8": 7}),
    "shuffle": Sample(Shuffle, _image, {"stem": 4, "conv1": 3, "conv2": 3}),
    "excite": Sample(Excite, _image, {"conv": 8, "reduce": 4}),
    "group_norm": Sample(_group_norm, _image, {"0": 4, "3": 6}),
    "series": Sample(_series, lambda: torch.randn(4, 3, 16), {"0": 8, "3": 6}),
    "sizes": Sample(Sizes, _image, {"conv": 4}),
    "attention": Sample(Attention, lambda: torch.randn(4, 5, 7), {"embed": 10, "qkv": 3}),
    "text": Sample(Text, lambda: torch.randint(0, 20, (4, 6)), {"embedding": 6, "fused": 8}),
    "product": Sample(Product, lambda: torch.randn(4, 7), {"hidden": 12, "middle": 6}),
    "per_head": Sample(PerHead, lambda: torch.randn(4, 5, 7), {"into": 3, "into#2": 4, "out": 6}),
    "flash": Sample(Flash, lambda: torch.randn(4, 5, 10), {"q": 3}),
    "recurrent": Sample(Recurrent, lambda: torch.randn(4, 2, 7), {"embed": 6, "lstm": 8}),
    "coincidence": Sample(attentive.Coincidence, _tokens, {"embed": 12, "into": 3}),
    "one_setting": Sample(attentive.OneSetting, _tokens, {"first": 3}),
    "bias_table": Sample(attentive.BiasTable, _tokens, {"q": 3}),
    "rotary": Sample(attentive.Rotary, _tokens, {"q": 3}),
    "along_channels": Sample(attentive.AlongChannels, _tokens, {"q": 3}),
    "linear_attention": Sample(attentive.Linear, _tokens, {"q": 3}),
    "heads_in_batch": Sample(attentive.HeadsInBatch, _tokens, {"q": 3}),
    "class_token": Sample(attentive.ClassToken, _tokens, {"embed": 10, "hidden": 8}),
    "ghost": Sample(Ghost, _image, {"primary": 6}),
    "selective": Sample(Selective, _image, {"paths.0": 6, "reduce": 4}),
    "causal": Sample(Causal, _tokens, {"embed": 6, "mix": 8}),
    "decoder": Sample(_decoder, _image, {"0": 8, "2": 3, "4": 2}),
}
"""Every growth in these is exact: none normalises over a width."""


def trained(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network after a few forward passes in training mode, and inputs."""
    torch.manual_seed(seed)
    sample = NETWORKS[name]
    model, inputs = sample.build(), sample.inputs()
    model.train()
    for _ in range(3):
        model(inputs)
    return model.eval(), inputs
