"""Networks whose forward pass reads values: branches, guards, experts, early exits."""

import random
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

WIDTH = 8


class Looking(nn.Module):
    """Two layers, and between them a function that looks at the values.

    Args:
        look: takes the hidden values and returns what the second layer reads.
    """

    def __init__(self, look: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.look = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), look

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.look(self.first(x).relu()))
        return out


class Experts(nn.Module):
    """Four experts, of which those without tokens do not run.

    Args:
        mix: takes this network and tokens, and returns what the experts make of them.
    """

    def __init__(self, mix: Callable[["Experts", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.gate = nn.Linear(WIDTH, 4)
        experts = (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(4))
        self.experts = nn.ModuleList(experts)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        out: Tensor = self.second(h + self.mix(self, h))
        return out


def skips_idle(net: Experts, x: Tensor) -> Tensor:
    _, chosen = net.gate(x).topk(2, -1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        mine = (chosen == number).any(-1)
        if not mine.any():
            continue
        out[mine] += expert(x[mine])
    return out


def skips_empty(net: Experts, x: Tensor) -> Tensor:
    chosen = net.gate(x).argmax(-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        (rows,) = torch.where(chosen == number)
        if rows.numel() == 0:
            continue
        out[rows] = expert(x[rows])
    return out


def runs_those_named(net: Experts, x: Tensor) -> Tensor:
    chosen = net.gate(x).argmax(-1)
    out = x.clone()
    for number in torch.unique(chosen).tolist():
        out[chosen == number] = net.experts[number](x[chosen == number])
    return out


def runs_one(net: Experts, x: Tensor) -> Tensor:
    scores = net.gate(x).detach().cpu().numpy().mean(0)
    out: Tensor = net.experts[int(np.argmax(scores))](x)
    return out


MIXTURES = (skips_idle, skips_empty, runs_those_named, runs_one)


class EarlyExit(nn.Module):
    """Returns the answer of the first of four exits that is confident enough."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.exits = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block, leave in zip(self.blocks, self.exits, strict=True):
            h = h + block(h).relu()
            answer: Tensor = leave(h)
            if answer.softmax(-1).max() > 0.4:
                break
        return answer


def raises(h: Tensor) -> Tensor:
    if torch.isnan(h).any():
        raise ValueError("not a number")
    return h


def _is_bad(h: Tensor) -> Tensor:
    return (~torch.isfinite(h)).any()


def raises_by_function(h: Tensor) -> Tensor:
    if _is_bad(h) or _is_bad(h * 2):
        raise ValueError("not a number")
    return h


def _is_huge(h: Tensor) -> bool:
    return bool(h.abs().max() > 1e9)


def raises_by_truth(h: Tensor) -> Tensor:
    if _is_huge(h):
        raise ValueError("too large")
    return h


def raises_by_any(h: Tensor) -> Tensor:
    if any(bool(part.isnan().any()) for part in (h, h * 2)):
        raise ValueError("not a number")
    return h


def raises_by_number(h: Tensor) -> Tensor:
    count = torch.isnan(h).sum().item()
    if count:
        raise ValueError(f"{count} are not a number")
    return h


def raises_by_named(h: Tensor) -> Tensor:
    if (mean := h.mean().item()) > 1e9:
        raise ValueError(f"{mean} is too large")
    return h


def raises_if_large(h: Tensor) -> Tensor:
    if float(h.detach().norm()) > 1e9 or h.mean().item() > 1e9:
        raise ValueError("too large")
    return h


def asserts(h: Tensor) -> Tensor:
    assert torch.isfinite(h).all(), "not a number"
    torch._assert(h.abs().max() < 1e9, "too large")  # type: ignore[no-untyped-call]
    return h


def warns(h: Tensor) -> Tensor:
    if not (torch.isfinite(h).all() and h.abs().sum().item() < 1e9):
        text = "not a number"
        warnings.warn(text, stacklevel=1)
    return h


def compares(h: Tensor) -> Tensor:
    if torch.equal(h, h + 1) or torch.allclose(h, h + 1) or (h != h).any():
        raise ValueError("not a number")
    return h


GUARDS = (
    *(raises, raises_by_function, raises_by_truth, raises_by_any, raises_by_number),
    *(raises_by_named, raises_if_large, asserts, warns, compares),
)


def chooses(h: Tensor) -> Tensor:
    return h * 2 if h.mean() > 0 else h


def chooses_in_a_list(h: Tensor) -> Tensor:
    return torch.stack([v for v in (h, h * 2) if v.sum() > -1e9]).sum(0)


def repeats(h: Tensor) -> Tensor:
    while h.abs().max() < 10:
        h = h * 2 + 1
    return h


def clamps(h: Tensor) -> Tensor:
    if h.abs().max() > 0.5:
        h = h.clamp(max=0.5)
        print("clamped")
    return h


def chooses_by_number(h: Tensor) -> Tensor:
    mean = h.mean().item()
    if mean > 0:
        h = h * 2
    return h


BRANCHES = (chooses, chooses_in_a_list, repeats, clamps, chooses_by_number)


def divides(h: Tensor) -> Tensor:
    out: Tensor = h / (1 + h.norm().item())
    return out


def divides_after_a_guard(h: Tensor) -> Tensor:
    mean = h.mean().item()
    if mean > 1e9:
        raise ValueError("too large")
    return h / (1 + mean)


def divides_by_named(h: Tensor) -> Tensor:
    if (mean := h.mean().item()) > 1e9:
        raise ValueError("too large")
    return h / (1 + mean)


COMPUTES = (divides, divides_after_a_guard, divides_by_named)


def draws_in_torch(h: Tensor) -> Tensor:
    return h * 2 if torch.rand(()) < 0.5 else h


def draws_in_python(h: Tensor) -> Tensor:
    return h * 2 if random.random() < 0.5 else h


def draws_in_numpy(h: Tensor) -> Tensor:
    return h * 2 if np.random.random() < 0.5 else h


DRAWS = (draws_in_torch, draws_in_python, draws_in_numpy)
