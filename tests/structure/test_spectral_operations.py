"""Spectral layers and complex numbers: transforms along and across units."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import trace
from tests.structure.operations import CHECKS, Case, Operation, Through, fixed_reason


def _tokens() -> Tensor:
    return torch.randn(4, 7, 5)


def _complex(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.cfloat)


class FourierLayer(nn.Module):
    """The lowest frequencies are multiplied by matrices, the others are dropped (FNO)."""

    def __init__(self, num_inputs: int, num_outputs: int, modes: int) -> None:
        super().__init__()
        self.out_channels, self.modes = num_outputs, modes
        self.low, self.high = (
            nn.Parameter(0.3 * _complex(num_inputs, num_outputs, modes, modes)) for _ in range(2)
        )
        self.beside = nn.Conv2d(num_inputs, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        f, m = torch.fft.rfft2(x), self.modes
        out = torch.zeros(
            *(len(x), self.out_channels, x.size(-2), x.size(-1) // 2 + 1),
            dtype=torch.cfloat,
            device=x.device,
        )
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", f[:, :, :m, :m], self.low)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", f[:, :, -m:, :m], self.high)
        return F.gelu(torch.fft.irfft2(out, s=x.shape[-2:]) + self.beside(x))


class GlobalFilter(nn.Module):
    """A learned filter in the space of frequencies, kept as pairs of real numbers (GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(6, 4, 8, 2))
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        f = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.filter)
        x = x + torch.fft.irfft2(f, s=x.shape[1:3], dim=(1, 2), norm="ortho")
        out: Tensor = self.head(x.tanh().mean((1, 2)))
        return out


class LongConvolution(nn.Module):
    """A convolution as long as the signal, by Fourier transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(5, 6), nn.Linear(6, 2)
        self.kernel, self.skip = nn.Parameter(torch.randn(6, 7)), nn.Parameter(torch.randn(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x).transpose(1, 2)
        n = 2 * u.size(-1)
        f = torch.fft.rfft(u, n=n) * torch.fft.rfft(self.kernel, n=n)
        y = torch.fft.irfft(f, n=n)[..., : u.size(-1)] + u * self.skip
        out: Tensor = self.out(F.gelu(y).transpose(1, 2))
        return out


class ComplexLayers(nn.Module):
    """Layers with complex parameters, and rectifiers of both parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6, dtype=torch.cfloat)
        self.second = nn.Linear(6, 4, dtype=torch.cfloat)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.to(torch.cfloat))
        z = self.second(torch.complex(F.relu(z.real), F.relu(z.imag)))
        out: Tensor = self.head(torch.view_as_real(z).flatten(2))
        return out


class ComplexConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, dtype=torch.cfloat)
        self.b = nn.Conv2d(6, 4, 1, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x.to(torch.cfloat))
        out: Tensor = self.b(torch.polar(z.abs().tanh(), z.angle())).abs()
        return out


class RotaryPairs(nn.Module):
    """Rotary angles as complex factors of pairs of coordinates (Llama)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))
        self.out = nn.Linear(12, 5)
        angles = torch.outer(torch.arange(7.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("turns", torch.polar(torch.ones(7, 2), angles))

    def forward(self, x: Tensor) -> Tensor:
        def turned(t: Tensor) -> Tensor:
            pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2))
            assert isinstance(self.turns, Tensor)
            return torch.view_as_real(pairs * self.turns[None, :, None]).flatten(3)

        shape = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (layer(x).view(shape) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(
            *(turned(q).transpose(1, 2), turned(k).transpose(1, 2), v.transpose(1, 2))
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def _pairs(model: Any, h: Tensor) -> Tensor:
    product = torch.einsum("bti,io->bto", h.to(torch.cfloat), torch.view_as_complex(model.weight))
    return torch.view_as_real(product).flatten(2)


def _two_parts(model: Any, h: Tensor) -> Any:
    return (h.to(torch.cfloat) @ torch.complex(model.re, model.im)).abs()


def _stacked_parts(model: Any, h: Tensor) -> Any:
    weight = torch.view_as_complex(torch.stack([model.re, model.im], -1))
    return (h.to(torch.cfloat) @ weight).abs()


OPERATIONS: dict[str, Operation] = {
    "real part": lambda _, h: torch.fft.fft(h, dim=1).real,
    "imaginary part": lambda _, h: torch.fft.fftn(h, dim=(0, 1)).imag,
    "there and back": lambda _, h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=7, dim=1),
    "magnitude": lambda _, h: torch.fft.rfft(h, dim=1, norm="ortho").abs().mean(1),
    "shifted": lambda _, h: torch.fft.fftshift(torch.fft.fft(h, dim=1), dim=1).real,
    "polar": lambda _, h: torch.polar(h, h).real,
}


def _along_tokens(operation: Operation) -> Case:
    return Case(lambda: Through(operation), _tokens, {"first": 6})


CASES = {
    **{name: _along_tokens(operation) for name, operation in OPERATIONS.items()},
    "complex weight": Case(
        lambda: Through(
            lambda m, h: (h.to(torch.cfloat) @ m.weight).real, 8, weight=_complex(6, 8)
        ),
        _tokens,
        {"first": 6, "weight": 8},
    ),
    "complex gate": Case(
        lambda: Through(lambda m, h: (torch.fft.rfft(h, dim=1) * m.gate).real, gate=_complex(6)),
        _tokens,
        {"first": 6},
    ),
    "pairs of real numbers": Case(
        lambda: Through(_pairs, 16, weight=torch.randn(6, 8, 2)), _tokens, {"first": 6, "weight": 8}
    ),
    "two parts": Case(
        lambda: Through(_two_parts, 8, re=torch.randn(6, 8), im=torch.randn(6, 8)),
        _tokens,
        {"first": 6, "re": 8},
    ),
    "stacked parts": Case(
        lambda: Through(_stacked_parts, 8, re=torch.randn(6, 8), im=torch.randn(6, 8)),
        _tokens,
        {"first": 6, "re": 8},
    ),
    "fourier layers": Case(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 8, 1), FourierLayer(8, 6, 3), FourierLayer(6, 5, 3), nn.Conv2d(5, 1, 1))
        ),
        lambda: torch.randn(2, 2, 8, 8),
        {"0": 8, "1.low": 6, "2.low": 5},
    ),
    "global filter": Case(GlobalFilter, lambda: torch.randn(2, 6, 6, 5), {"embed": 8}),
    "long convolution": Case(LongConvolution, _tokens, {"into": 6}),
    "complex layers": Case(ComplexLayers, _tokens, {"first": 6, "second": 4}),
    "complex convolutions": Case(ComplexConvolutions, lambda: torch.randn(2, 2, 6, 6), {"a": 6}),
    "rotary pairs": Case(RotaryPairs, _tokens, {"q": 3}),
}


@pytest.mark.filterwarnings("ignore:compensate. .* cannot be refitted")
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_units_pass_through_spectral_layers(name: str, check: Callable[[Case], None]) -> None:
    check(CASES[name])


@pytest.mark.parametrize(
    "operation",
    [
        lambda _, h: torch.fft.fft(torch.fft.fft(h, dim=-1), dim=-2).real,
        lambda _, h: torch.fft.rfft2(h, s=(7, 10)).abs(),
        lambda _, h: torch.fft.fftn(h).real,
        lambda _, h: h + torch.stft(h[0], 6, return_complex=True, center=False).abs().sum(),
    ],
)
@pytest.mark.filterwarnings("ignore:stft with")
def test_units_that_are_transformed_are_fixed(operation: Callable[..., Tensor]) -> None:
    reason = fixed_reason(Through(operation), _tokens(), "first")
    assert reason == "a Fourier transform runs along it"


def test_real_and_imaginary_part_are_no_units() -> None:
    pair = Through(lambda m, h: h * torch.view_as_complex(m.pair).abs(), pair=torch.randn(2))
    graph = trace(pair, _tokens())
    assert graph.widths == {"first": 6}
    assert "pair" not in graph.fixed
