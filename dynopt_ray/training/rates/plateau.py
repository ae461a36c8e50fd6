"""Plateau: a rate that is cut when the loss stops falling, from the best weights on."""

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.structure import masked_parameters
from dynopt_ray.training.loop import copied, load_optimizer_state, optimizer_state
from dynopt_ray.training.numbers import not_negative, share, whole
from dynopt_ray.training.rates.controller import set_rates, shapes


class Plateau:
    """Cuts the rate and goes back to the best weights where the loss has stopped falling.

    torch's `ReduceLROnPlateau` cuts the rate only; what was lost since the best state has to be
    learned again, at the smaller rate. After an edit that resizes the network or masks weights the
    best state no longer fits, and the search for one begins anew.

    Args:
        model: the network.
        optimizer: its optimizer; all groups' rates are cut.
        factor: what rates are multiplied with, in (0, 1).
        patience: losses without a new best one before a cut, at least 1.
        min_gain: how much lower a loss must be to be a new best, relative to the best, >= 0.
        min_lr: rates never fall below.
        backtrack: whether to go back to the best weights and optimizer state.

    Raises:
        TypeError: no number, or patience that is no whole number.
        ValueError: a number out of range.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> plateau = Plateau(model, optimizer, patience=2)
        >>> [plateau.observe(loss) for loss in (1.0, 0.5, 0.6, 0.7)]
        [False, False, False, True]
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        factor: float = 0.5,
        patience: int = 5,
        min_gain: float = 1e-3,
        min_lr: float = 0.0,
        backtrack: bool = True,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.factor = share("Plateau: factor", factor)
        self.min_gain = not_negative("Plateau: min_gain", min_gain)
        self.min_lr = not_negative("Plateau: min_lr", min_lr)
        self.patience = whole("Plateau: patience", patience, least=1)
        self.backtrack = backtrack
        self.best_loss = math.inf
        self.num_bad = 0
        self._best: dict[str, Any] | None = None

    def observe(self, loss: float) -> bool:
        """Take a loss, of validation data say; NaN and infinity count as worse than any.

        Returns:
            Whether the rate was cut.
        """
        if self._best is not None and not self._fits(self._best["model"]):
            self.detach()
        gain = self.min_gain * abs(self.best_loss) if math.isfinite(self.best_loss) else 0.0
        if loss < self.best_loss - gain:
            self.best_loss, self.num_bad = loss, 0
            if self.backtrack:
                self._best = {
                    "model": copied(dict(self.model.state_dict())),
                    "optimizer": optimizer_state(self.optimizer),
                }
            return False
        self.num_bad += 1
        if self.num_bad < self.patience:
            return False
        self._cut()
        return True

    def detach(self) -> None:
        """Let go of the best state."""
        self.best_loss, self.num_bad, self._best = math.inf, 0, None

    def state_dict(self) -> dict[str, Any]:
        """The best loss and state, and how long ago that was."""
        return {
            "best_loss": self.best_loss,
            "num_bad": self.num_bad,
            "best": copied(self._best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that gave `state`."""
        self.best_loss, self.num_bad = state["best_loss"], state["num_bad"]
        self._best = copied(state["best"])

    def _cut(self) -> None:
        self.num_bad = 0
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if self._best is not None:
            self.model.load_state_dict(self._best["model"])
            load_optimizer_state(self.optimizer, self._best["optimizer"])
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        set_rates(self.optimizer, lambda rate: min(rate, max(rate * self.factor, self.min_lr)))

    def _fits(self, state: dict[str, Any]) -> bool:
        if shapes(self.model.state_dict()) != shapes(state):
            return False
        masks = masked_parameters(self.model)
        return not any(bool(state[name][~keep].any()) for name, keep in masks.items())
