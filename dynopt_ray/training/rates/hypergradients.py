"""Hypergradient descent: gradient descent on the learning rate itself."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dynopt_ray.errors import CheckpointError
from dynopt_ray.training.numbers import not_negative, positive
from dynopt_ray.training.rates.controller import set_rates
from dynopt_ray.transfers import read_numbers

_LEAST_SHARE = 1e-3


class Hypergradient:
    """Raises the learning rate while gradients agree with the last step, and lowers it otherwise.

    With α the rate, g the gradient of a step and d the direction of the step before, w = w - α d:

        α = α + β · Σ g d                     (additive)
        α = α (1 + β · Σ g d / (|g| |d|))     (multiplicative)

    The direction d is computed from the change of the weights. Therefore this is the paper's form
    for every optimizer: d is the last gradient for SGD, and m̂ / (√v̂ + ε) for Adam. The rate is
    updated before the step that uses it. After an edit that resizes a parameter, the sum leaves
    that parameter out for one step.

    Args:
        optimizer: the optimizer. The rate of its first group is learned, and the other groups keep
            their ratio to it.
        hyper_lr: β, > 0. For the additive form it depends on the size of the gradients; for the
            multiplicative form it is a relative change, e.g. 0.02.
        multiplicative: whether to use the multiplicative form instead of the additive one.
        min_lr: lower bound of the rate, >= 0. Default: a thousandth of the rate at the start. At a
            rate of zero the weights would not move, so d would be unknown and the rate could never
            rise again.

    Raises:
        ValueError: an argument is out of range, or the optimizer maximises.

    References:
        Baydin et al. 2018, "Online Learning Rate Adaptation with Hypergradient Descent": SGD-HD and
        Adam-HD. The multiplicative form differs: it uses the cosine of the two directions.
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
                "Hypergradient: the optimizer maximises, so rates would change in the wrong "
                "direction; let it minimise the negated objective"
            )
        if min_lr is not None:
            not_negative("Hypergradient: min_lr", min_lr)
        self.optimizer, self.hyper_lr = optimizer, hyper_lr
        self.multiplicative = multiplicative
        self.min_lr = _LEAST_SHARE * self.lr if min_lr is None else min_lr
        self._directions: list[Tensor | None] = []
        self._directed: list[Tensor] = []  # the parameters that the directions belong to
        self._before: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._attach()

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def observe(self, loss: float) -> None:
        """Do nothing, because the rate depends on gradients alone."""

    def detach(self) -> None:
        """Stop controlling the optimizer, which keeps its present rates."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the hooks out: torch drops them from a copied optimizer."""
        return {**vars(self), "_handles": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _handles=[])
        if state["_handles"]:
            self._attach()

    def state_dict(self) -> dict[str, Any]:
        """Return the last directions. The rate itself is part of the optimizer's state."""
        return {"directions": [None if d is None else d.clone() for d in self._directions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the controller whose `state_dict` this is.

        Raises:
            CheckpointError: the state belongs to an optimizer of other parameters.
        """
        directions, parameters = state.get("directions"), self._parameters()
        if not isinstance(directions, list) or not all(
            d is None or (isinstance(d, Tensor) and d.is_floating_point()) for d in directions
        ):
            raise CheckpointError(f"Hypergradient: the directions are {directions!r:.100}")
        if directions and len(directions) != len(parameters):
            raise CheckpointError(
                f"Hypergradient: the state has directions of {len(directions)} parameters, but the "
                f"optimizer has {len(parameters)}; load it into the controller of an optimizer "
                "like the saved one"
            )
        # The network may be on another device than the one that the state was taken from.
        self._directions = [
            None if d is None else d.to(p.device, copy=True)
            for d, p in zip(directions, parameters, strict=False)
        ]
        self._directed = parameters if directions else []

    def _attach(self) -> None:
        self._handles += [
            self.optimizer.register_step_pre_hook(self._adapt),
            self.optimizer.register_step_post_hook(self._note),
        ]

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
        """Return Σ g d, or the cosine in the multiplicative form."""
        # By identity: parameters may have joined the optimizer, or a group, since the last step.
        known = dict(zip(map(id, self._directed), self._directions, strict=True))
        sums: list[Tensor] = []
        for p in parameters:
            d = known.get(id(p))
            if p.grad is not None and d is not None and d.shape == p.grad.shape:
                sums.append((p.grad * d).sum())
                if self.multiplicative:
                    sums += [p.grad.square().sum(), d.square().sum()]
        # Read at once: a read for each parameter would make the host wait for the GPU as often.
        figures = read_numbers(sums)
        if not self.multiplicative:
            return _total(figures)
        product, gradients, directions = (_total(figures[start::3]) for start in range(3))
        return product / max(math.sqrt(gradients * directions), 1e-30)

    @torch.no_grad()
    def _note(self, *_: Any) -> None:
        """Compute the directions of the step that was just taken."""
        self._directions, self._directed = [], self._parameters()
        rates = [g["lr"] for g in self.optimizer.param_groups for _ in g["params"]]
        for p, before, rate in zip(self._directed, self._before, rates, strict=True):
            self._directions.append((before - p) / rate if rate else None)
        self._before = []

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _total(figures: list[float]) -> float:
    """Add the values in order; since Python 3.12, `sum` rounds differently."""
    total = 0.0
    for figure in figures:
        total += figure
    return total


def hypergradient(
    model: nn.Module,  # noqa: ARG001 - controller factories get the network too
    optimizer: Optimizer,
    *,
    hyper_lr: float,
    multiplicative: bool = False,
    min_lr: float | None = None,
) -> Hypergradient:
    """Return a `Hypergradient`. The network is ignored; controller factories must accept it."""
    return Hypergradient(optimizer, hyper_lr=hyper_lr, multiplicative=multiplicative, min_lr=min_lr)
