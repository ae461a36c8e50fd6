"""COCOB: an optimizer without a learning rate, based on coin betting."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

_STATE = ("start", "largest", "total", "reward", "sum")


class Cocob(Optimizer):
    """Continuous coin betting by backpropagation, which needs no learning rate.

    Each weight bets on the sign of its next gradient. Its initial endowment is its largest gradient
    so far. With g the negative gradient of one weight, w₁ its initial value, and all operations
    elementwise:

        L = max(L, |g|)     G = G + |g|     R = max(R + (w - w₁) g, 0)     θ = θ + g
        w = w₁ + θ / (L max(G + L, α L)) · (L + R)

    Weights that have never had a gradient do not move. When a network grows, its new units start
    their own history at their own w₁.

    Args:
        params: parameters or parameter groups, as for any torch optimizer.
        lr: factor for every step, >= 0, because schedules and searches expect an optimizer to have
            one; 1 is the paper's algorithm.
        alpha: α, > 0; the larger it is, the more slowly the first bets grow.

    Raises:
        ValueError: an argument is out of range.

    References:
        Orabona & Tommasi 2017, "Training Deep Networks without Learning Rates Through Coin
        Betting", algorithm 2 (COCOB-Backprop), with its α = 100.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, alpha: float = 100.0) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"Cocob: lr is {lr!r}; it must be finite and >= 0")
        if not alpha > 0:
            raise ValueError(f"Cocob: alpha is {alpha!r}; it must be > 0")
        super().__init__(params, {"lr": lr, "alpha": alpha})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one optimizer step, i.e. place the next bets."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._bet(parameter, -parameter.grad, group["alpha"], group["lr"])
        return loss

    def _bet(self, weight: Tensor, gradient: Tensor, alpha: float, lr: float) -> None:
        state = self.state[weight]
        if not state:
            state["start"] = weight.detach().clone()
            state.update({name: torch.zeros_like(weight) for name in _STATE[1:]})
        start, largest, total, reward, bets = (state[name] for name in _STATE)
        torch.maximum(largest, gradient.abs(), out=largest)
        total.add_(gradient.abs())
        reward.addcmul_(weight - start, gradient).clamp_(min=0)
        bets.add_(gradient)
        scale = largest * torch.maximum(total + largest, alpha * largest)
        step = bets / scale.masked_fill(scale == 0, 1) * (largest + reward)
        weight.copy_(start + lr * step)
