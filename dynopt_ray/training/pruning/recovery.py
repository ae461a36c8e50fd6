"""Recoveries: giving back some of what a cut removed, before the network retrains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dynopt_ray.training.numbers import share, whole
from dynopt_ray.training.pruning.candidates import Candidates
from dynopt_ray.training.pruning.selection import Fits

# An idle unit changes a loss by as much, up or down as the processor adds.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Cut:
    """A removal that a recovery looks at.

    Attributes:
        candidates: everything there was to choose from.
        removed: bool tensor, one entry per candidate.
        num_spare: how many may come back.
        fits: whether another removal still reaches the target.
        loss: the validation loss after another removal, exactly: it is carried out and undone.
        gains: for a removal, a first-order estimate of how much the validation loss falls when
            one of its candidates comes back, for all of them at once.
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
    """Chooses what comes back."""

    @property
    def share(self) -> float:
        """The part that comes back of what is removed, or of what stays if that is less.

        A recovery looks at the network without that part, and if nine tenths go anyway, another
        tenth more would leave nothing to look at.
        """

    def __call__(self, cut: Cut) -> Tensor:
        """What stays removed: a part of `cut.removed` that fits."""


@dataclass(frozen=True, kw_only=True)
class Random:
    """Gives back a random share of what was removed.

    Attributes:
        share: the part that comes back, in (0, 1); see `Recovery`.

    Raises:
        ValueError: outside that range.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        share("Random: share", self.share)

    def __call__(self, cut: Cut) -> Tensor:
        """Candidates in random order; those that would break the target are passed over."""
        removed = cut.removed.nonzero()[:, 0]
        order = removed[torch.randperm(len(removed), generator=cut.generator)]
        return _returned(cut, cut.removed, order, cut.num_spare)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Gives back, step by step, what lowers the validation loss most.

    In each step a gradient at the cut network estimates for all removed candidates at once how
    much each would lower the loss. The best are bundled, as many in a bundle as let `num_steps`
    steps give back the whole share; the losses of the `num_checked` best bundles are measured,
    and the best of these stays in the network. It ends early when none lowers the loss; the cut,
    which went further by the share, then stays that far.

    Attributes:
        share: the part that comes back at most, in (0, 1); see `Recovery`.
        num_steps: steps in which it comes back.
        num_checked: bundles whose loss is measured in each step.

    Raises:
        ValueError: an argument out of range.
    """

    share: float = 0.1
    num_steps: int = 4
    num_checked: int = 4

    def __post_init__(self) -> None:
        share("Greedy: share", self.share)
        for name in ("num_steps", "num_checked"):
            whole(f"Greedy: {name}", getattr(self, name), least=1)

    def __call__(self, cut: Cut) -> Tensor:
        """Estimate, check the best few, keep the best."""
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
        """What stays removed, for each of the best bundles."""
        items = removed.nonzero()[:, 0]
        order = items[cut.gains(removed)[items].argsort(descending=True, stable=True)]
        bundles = torch.split(order, size)[: self.num_checked]
        options = [_returned(cut, removed, bundle, size) for bundle in bundles]
        return [option for option in options if not torch.equal(option, removed)]


def _returned(cut: Cut, removed: Tensor, items: Tensor, num_most: int) -> Tensor:
    """The removal without the first of `items` that may come back, at most so many.

    Whole runs are tried at once and halved where they do not fit. An owner that cannot get one
    candidate back gets no other one later, when everything else is wider.
    """
    blocked = torch.zeros(len(cut.candidates.names), dtype=torch.bool)
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
