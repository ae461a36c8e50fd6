"""Hypergradient descent: the learning rate follows its own gradient."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.training.numbers import not_negative, positive
from dynopt_ray.training.rates.controller import set_rates

_LEAST_SHARE = 1e-3


class Hypergradient:
    """Raises an optimizer's rate while gradients agree with its last steps, and lowers it else.

    With g the gradient of a step and d the direction of the step before, w = w - α d:

        α = α + β · Σ g d                     (additive)
        α = α (1 + β · Σ g d / (|g| |d|))     (multiplicative)

    The direction is read off the weights, so this is the paper's form for each optimizer: d is the
    last gradient for SGD, m̂ / (√v̂ + ε) for Adam. The rate changes before the step that it is used
    in. After an edit that resizes a parameter, the sum goes over the others for one step.

    Args:
        optimizer: whose first group's rate is learned; the other groups keep their ratio to it.
        hyper_lr: β, > 0. The additive form's depends on the size of gradients; the
            multiplicative one's is a share, e.g. 0.02.
        multiplicative: which of the two forms.
        min_lr: the rate never falls below; None for a thousandth of the rate at the start. At
            zero no step would be taken any more, and so no direction be known to rise by.

    Raises:
        ValueError: a number out of range, or an optimizer that maximises.

    References:
        Baydin et al. 2018, "Online Learning Rate Adaptation with Hypergradient Descent": SGD-HD and
        Adam-HD; its multiplicative form, here with the cosine of the two directions.
    """

    observes_losses = False

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        hyper_lr: float,
        multiplicative: bool = False,
        min_lr: float | None = None,
    ) -> None:
        positive("Hypergradient: hyper_lr", hyper_lr)
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError(
                "Hypergradient: the optimizer maximises, and rates would change the wrong way; let "
                "it minimise the negated objective"
            )
        if min_lr is not None:
            not_negative("Hypergradient: min_lr", min_lr)
        self.optimizer, self.hyper_lr = optimizer, hyper_lr
        self.multiplicative = multiplicative
        self.min_lr = _LEAST_SHARE * self.lr if min_lr is None else min_lr
        self._directions: list[Tensor | None] = []
        self._before: list[Tensor] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._adapt),
            optimizer.register_step_post_hook(self._note),
        ]

    @property
    def lr(self) -> float:
        """The rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def observe(self, loss: float) -> None:
        """Nothing: it follows the gradients alone."""

    def detach(self) -> None:
        """Leave the optimizer alone from now on, at the rate it has."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The last directions; the rate itself is the optimizer's."""
        return {"directions": [None if d is None else d.clone() for d in self._directions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that gave `state`."""
        self._directions = [None if d is None else d.clone() for d in state["directions"]]

    @torch.no_grad()
    def _adapt(self, *_: Any) -> None:
        parameters = self._parameters()
        if self._directions:
            agreement = self._agreement(parameters)
            before = self.lr
            change = before * self.hyper_lr if self.multiplicative else self.hyper_lr
            rate = max(before + change * agreement, self.min_lr)
            if math.isfinite(rate) and before:
                set_rates(self.optimizer, lambda lr: lr * (rate / before))
        self._before = [p.detach().clone() for p in parameters]

    def _agreement(self, parameters: list[Tensor]) -> float:
        """Σ g d, or its cosine."""
        product = gradients = directions = 0.0
        for p, d in zip(parameters, self._directions, strict=False):
            if p.grad is not None and d is not None and d.shape == p.grad.shape:
                product += float((p.grad * d).sum())
                gradients += float(p.grad.square().sum())
                directions += float(d.square().sum())
        if not self.multiplicative:
            return product
        return product / max(math.sqrt(gradients * directions), 1e-30)

    @torch.no_grad()
    def _note(self, *_: Any) -> None:
        """The direction of the step that was just taken."""
        self._directions = []
        rates = [g["lr"] for g in self.optimizer.param_groups for _ in g["params"]]
        for p, before, rate in zip(self._parameters(), self._before, rates, strict=True):
            self._directions.append((before - p) / rate if rate else None)
        self._before = []

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def hypergradient(
    model: nn.Module,  # noqa: ARG001 - what factories of controllers are given
    optimizer: Optimizer,
    *,
    hyper_lr: float,
    multiplicative: bool = False,
    min_lr: float | None = None,
) -> Hypergradient:
    """`Hypergradient`, made as controllers are; the network itself does not matter to it."""
    return Hypergradient(optimizer, hyper_lr=hyper_lr, multiplicative=multiplicative, min_lr=min_lr)
