"""Candidates for removal in the order of their importance: a common view of units and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dynopt_ray.criteria import Per, Scope, comparable
from dynopt_ray.structure import CostKind, Edit


@dataclass(frozen=True, eq=False)
class Candidates:
    """All n units (or weights) of a network in one sequence, on the CPU.

    Each candidate has an owner: the width group of a unit, or the parameter of a weight. The
    candidates of one owner are contiguous.

    Attributes:
        names: the names of the owners, in the order of their candidates.
        sizes: number of candidates of each owner.
        index: LongTensor (n,), the index of each candidate within its owner.
        scores: float64 (n,), the scores from the criterion; larger = more important.
        ranked: float64 (n,), the scores made comparable across owners.
        order: LongTensor, the candidates that may be removed, least important first.
        place: int32 (n,), the position of each candidate in `order`; n if it has to stay.
        num_gone: number of candidates removed in earlier rounds.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    index: Tensor
    scores: Tensor
    ranked: Tensor
    order: Tensor
    place: Tensor
    num_gone: int

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def owner(self) -> Tensor:
        """LongTensor (n,), the index in `names` of each candidate's owner."""
        return torch.arange(len(self.names), device="cpu").repeat_interleave(
            torch.tensor(self.sizes, device="cpu")
        )

    def first(self, number: int) -> Tensor:
        """Return the removal of the `number` least important candidates, a bool tensor (n,)."""
        return self.place < number

    def least(self, numbers: Mapping[str, int]) -> Tensor:
        """Return the removal of the least important candidates of some owners, a bool tensor (n,).

        Args:
            numbers: owner -> number to remove. Fewer are removed if the others have to stay.
        """
        removed = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        owners = self.owner[self.order]
        for name, number in numbers.items():
            removed[self.order[owners == self.names.index(name)][:number]] = True
        return removed

    def per_owner(self, values: Tensor) -> dict[str, Tensor]:
        """Split a tensor (n,) into views, one per owner."""
        return dict(zip(self.names, torch.split(values, list(self.sizes)), strict=True))

    def removed_from(self, removed: Tensor) -> dict[str, Tensor]:
        """Return, for each owner that loses candidates, their indices within the owner."""
        indices = self.per_owner(self.index)
        gone = {name: indices[name][mask] for name, mask in self.per_owner(removed).items()}
        return {name: numbers for name, numbers in gone.items() if len(numbers)}


class Pool(Protocol):
    """The candidates of one network, its units or its weights, and what removing them would do.

    A removal is a bool tensor (n,) with one entry per candidate.
    """

    noun: str
    is_even: bool
    """Whether all candidates cost the same."""

    @property
    def candidates(self) -> Candidates:
        """All candidates."""

    def doable(self, removed: Tensor) -> Tensor:
        """Return the largest part of a removal that edits can carry out.

        If something has to be left out, it is the most important candidates. `cost` and `plan`
        refer to this part.
        """

    def plan(self, removed: Tensor) -> list[Edit]:
        """Return the edits that carry out a removal."""

    def cost(self, removed: Tensor, kinds: Sequence[CostKind]) -> dict[CostKind, float]:
        """Return the costs that the network would have after a removal."""

    def obstacles(self, kind: CostKind) -> str:
        """Explain why this cost cannot fall further when everything removable is removed."""

    def gains(self, gradients: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensor:
        """Estimate, to first order, how much the loss falls when one removed candidate returns.

        Args:
            gradients: parameter name -> gradient of the loss after the removal, in the layout of
                the network before it.
            held: parameter name -> value before the removal.

        Returns:
            Tensor (n,), larger = better to give back. Only the entries of removed candidates have
            a meaning.
        """

    def embedded(
        self, removed: Tensor, held: Mapping[str, Tensor], cut: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the parameters and buffers after a removal, in the layout before it.

        Args:
            removed: the removal.
            held: name -> parameter or buffer before the removal.
            cut: name -> parameter or buffer after the removal.
        """


def list_candidates(
    scores: Mapping[str, Tensor],
    scope: Scope,
    *,
    per: Per,
    indices: Mapping[str, Tensor],
    num_gone: Mapping[str, int],
    stays: Mapping[str, Tensor],
) -> Candidates:
    """Join the candidates of several owners and rank them.

    Args:
        scores: owner -> Tensor (number of candidates,).
        scope: how scores of different owners are compared; see `comparable`.
        per: what scores are divided by; see `comparable`.
        indices: owner -> LongTensor (number of candidates,), their indices within the owner.
        num_gone: owner -> number of candidates removed earlier.
        stays: owner -> bool tensor (number of candidates,), True for those that have to stay.
    """
    ranked = comparable(scores, scope, per=per, num_gone=num_gone)
    row = _joined(list(ranked.values()), torch.float64)
    order = row.argsort(stable=True)
    order = order[~_joined([stays[name] for name in ranked], torch.bool)[order]]
    place = torch.full((len(row),), len(row), dtype=torch.int32, device="cpu")
    place[order] = torch.arange(len(order), dtype=torch.int32, device="cpu")
    return Candidates(
        names=tuple(ranked),
        sizes=tuple(map(len, ranked.values())),
        index=_joined([indices[name] for name in ranked], torch.long),
        scores=_joined([scores[name].detach().cpu() for name in ranked], torch.float64),
        ranked=row,
        order=order,
        place=place,
        num_gone=sum(num_gone.values()),
    )


def most_important(scores: Tensor, number: int) -> Tensor:
    """Mark the `number` highest scores, or all if there are fewer, in a bool tensor."""
    most = torch.zeros(len(scores), dtype=torch.bool, device="cpu")
    # Of equal scores the first is removed first, as in the order of candidates.
    most[scores.detach().cpu().argsort(stable=True)[max(0, len(scores) - number) :]] = True
    return most


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(
        [torch.empty(0, dtype=dtype, device="cpu"), *(part.to(dtype) for part in parts)]
    )
