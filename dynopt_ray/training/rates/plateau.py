"""Plateau: cut the learning rate and return to the best weights when the loss stops falling."""

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure import masked_parameters
from dynopt_ray.training.loop import (
    check_optimizer_state,
    copied,
    load_optimizer_state,
    optimizer_state,
)
from dynopt_ray.training.numbers import not_negative, share, whole
from dynopt_ray.training.rates.controller import set_rates, shapes


class Plateau:
    """Cuts the learning rate and restores the best weights when the loss has stopped falling.

    In contrast, torch's `ReduceLROnPlateau` only cuts the rate, so the network must recover at the
    smaller rate what it lost since its best state. When an edit resizes the network or masks
    weights, the best state no longer fits; it is forgotten and the search starts again.

    Args:
        model: the network.
        optimizer: its optimizer; the rates of all groups are cut.
        factor: factor by which rates are multiplied, in (0, 1).
        patience: number of consecutive losses without a new best before a cut, at least 1.
        min_gain: how much lower than the best a loss must be to become the new best, relative to
            the best, >= 0.
        min_lr: rates are never cut below this, >= 0.
        backtrack: whether to restore the best weights and optimizer state at a cut.

    Raises:
        TypeError: an argument is not a number, or patience is not a whole number.
        ValueError: an argument is out of range.

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
        """Take a loss, e.g. of validation data. NaN and infinity never count as a new best.

        Returns:
            True if the rate was cut.
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
        """Forget the best loss and state."""
        self.best_loss, self.num_bad, self._best = math.inf, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss, the best state, and the number of losses since."""
        return {
            "best_loss": self.best_loss,
            "num_bad": self.num_bad,
            "best": copied(self._best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the controller whose `state_dict` this is.

        Raises:
            CheckpointError: the state is not one of this controller, or of another optimizer.
        """
        loss, num_bad, best = (state.get(key) for key in ("best_loss", "num_bad", "best"))
        if isinstance(loss, bool) or not isinstance(loss, int | float) or math.isnan(loss):
            raise CheckpointError(f"Plateau: the best loss is {loss!r:.60}, which is no loss")
        if type(num_bad) is not int or num_bad < 0:
            raise CheckpointError(f"Plateau: the number of losses is {num_bad!r:.60}")
        if best is not None:
            is_state = isinstance(best, dict) and best.keys() == {"model", "optimizer"}
            if not is_state or not isinstance(best["model"], dict):
                raise CheckpointError(f"Plateau: the best state is {best!r:.100}")
            # A network that was resized since is of other shapes, and this state will be forgotten.
            if self._fits(best["model"]):
                check_optimizer_state(self.optimizer, best["optimizer"])
        self.best_loss, self.num_bad, self._best = loss, num_bad, copied(best)

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
