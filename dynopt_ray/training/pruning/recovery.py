"""Recoveries: give back a part of what a cut removed, before the network is retrained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dynopt_ray.training.numbers import share, whole
from dynopt_ray.training.pruning.candidates import Candidates
from dynopt_ray.training.pruning.selection import Fits

# Relative change of the loss that rounding errors may cause when a unit without effect returns.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut, as a recovery gets it.

    Attributes:
        candidates: all units (or weights) of the network before the cut.
        removed: bool tensor, one entry per candidate, True for those that the cut removes.
        num_spare: number of removed candidates that may be given back.
        fits: removal -> whether it still reaches the target.
        loss: removal -> exact validation loss after it; the removal is carried out and undone.
        gains: removal -> for each removed candidate, a first-order estimate of how much the
            validation loss falls if this candidate alone is given back.
        generator: for random choices.
    """

    candidates: Candidates
    removed: Tensor
    num_spare: int
    fits: Fits
    loss: Callable[[Tensor], float]
    gains: Callable[[Tensor], Tensor]
    generator: torch.Generator


class Recovery(Protocol):
    """Chooses what is given back."""

    @property
    def share(self) -> float:
        """The fraction to give back: of what is removed, or of what stays if that is less.

        The cut first removes this fraction in addition. If nine tenths are removed anyway, another
        tenth of that many would leave nearly nothing.
        """

    def __call__(self, cut: Cut) -> Tensor:
        """Return what stays removed: a part of `cut.removed` for which `cut.fits` holds."""


@dataclass(frozen=True, kw_only=True)
class Random:
    """Gives back a random part of what was removed.

    Attributes:
        share: fraction to give back, in (0, 1); see `Recovery`.

    Raises:
        ValueError: the fraction is outside this range.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        share("Random: share", self.share)

    def __call__(self, cut: Cut) -> Tensor:
        """Give back candidates in random order, except those whose return would miss the target."""
        removed = cut.removed.nonzero()[:, 0]
        order = removed[torch.randperm(len(removed), generator=cut.generator, device="cpu")]
        return _returned(cut, cut.removed, order, cut.num_spare)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Gives back, step by step, the candidates that lower the validation loss most.

    In each step, a gradient at the cut network estimates for all removed candidates at once how
    much each would lower the loss. Candidates are bundled in the order of these estimates, in
    bundles large enough for `num_steps` steps to give back the whole share. The losses of the
    `num_checked` best bundles are measured, and the best of them is given back. The recovery ends
    early if none lowers the loss; the rest of the additional cut then stays removed.

    Attributes:
        share: largest fraction to give back, in (0, 1); see `Recovery`.
        num_steps: number of steps in which it is given back, at least 1.
        num_checked: number of bundles whose loss is measured in each step, at least 1.

    Raises:
        ValueError: an attribute is out of range.
    """

    share: float = 0.1
    num_steps: int = 4
    num_checked: int = 4

    def __post_init__(self) -> None:
        share("Greedy: share", self.share)
        for name in ("num_steps", "num_checked"):
            whole(f"Greedy: {name}", getattr(self, name), least=1)

    def __call__(self, cut: Cut) -> Tensor:
        """Estimate gains, measure the best bundles, and give back the best one, in each step."""
        removed, left = cut.removed, cut.num_spare
        size = max(1, -(-cut.num_spare // self.num_steps))
        loss = cut.loss(removed)
        while left > 0:
            tried = self._tried(cut, removed, min(size, left))
            losses = [cut.loss(option) for option in tried]
            if not losses or min(losses) >= loss - _ROUNDING * abs(loss):
                break
            best = tried[losses.index(min(losses))]
            left -= int(removed.sum()) - int(best.sum())
            removed, loss = best, min(losses)
        return removed

    def _tried(self, cut: Cut, removed: Tensor, size: int) -> list[Tensor]:
        """Return, for each of the best bundles, what stays removed if it is given back."""
        items = removed.nonzero()[:, 0]
        order = items[cut.gains(removed)[items].argsort(descending=True, stable=True)]
        bundles = torch.split(order, size)[: self.num_checked]
        options = [_returned(cut, removed, bundle, size) for bundle in bundles]
        return [option for option in options if not torch.equal(option, removed)]


def _returned(cut: Cut, removed: Tensor, items: Tensor, num_most: int) -> Tensor:
    """Return the removal after giving back the first `num_most` of `items` that fit.

    Runs of items are tried at once, and halved if they do not fit. If one candidate of an owner
    does not fit, the others of this owner are skipped: they would cost the same or more later, when
    the rest of the network is wider.
    """
    blocked = torch.zeros(len(cut.candidates.names), dtype=torch.bool, device="cpu")
    runs, num_left = [items], num_most
    while runs and num_left:
        run = runs.pop()
        run = run[~blocked[cut.candidates.owner[run]]]
        if len(run) > num_left:
            runs.append(run[num_left:])
            run = run[:num_left]
        trial = removed.clone()
        trial[run] = False
        if cut.fits(trial):
            removed, num_left = trial, num_left - len(run)
        elif len(run) == 1:
            blocked[cut.candidates.owner[run]] = True
        else:
            runs += [run[len(run) // 2 :], run[: len(run) // 2]]
    return removed
