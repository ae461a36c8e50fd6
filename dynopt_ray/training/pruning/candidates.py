"""What may be removed from a network, in which order: the view that units and weights share."""

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
    """All units (or weights) of a network in one row, on the CPU.

    Attributes:
        names: the groups (or parameters) they belong to; each one's stand together.
        sizes: how many each has.
        index: LongTensor (n,), the number of each within its owner.
        scores: (n,), as the criterion gave them.
        ranked: (n,), the same made comparable across owners.
        order: LongTensor, those that may go, least important first.
        place: int32 (n,), the place of each in that order; n for those that have to stay.
        num_gone: how many were removed in earlier rounds.
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
        """LongTensor (n,), the number in `names` of what each belongs to."""
        return torch.arange(len(self.names)).repeat_interleave(torch.tensor(self.sizes))

    def first(self, number: int) -> Tensor:
        """The removal of so many of the least important: a bool tensor (n,)."""
        return self.place < number

    def least(self, numbers: Mapping[str, int]) -> Tensor:
        """The removal of the least important of some owners, each as many as said or may go."""
        removed = torch.zeros(len(self), dtype=torch.bool)
        owners = self.owner[self.order]
        for name, number in numbers.items():
            removed[self.order[owners == self.names.index(name)][:number]] = True
        return removed

    def per_owner(self, values: Tensor) -> dict[str, Tensor]:
        """Views of a tensor (n,), one per owner."""
        return dict(zip(self.names, torch.split(values, list(self.sizes)), strict=True))

    def removed_from(self, removed: Tensor) -> dict[str, Tensor]:
        """The numbers of what is removed, within each owner that loses something."""
        indices = self.per_owner(self.index)
        gone = {name: indices[name][mask] for name, mask in self.per_owner(removed).items()}
        return {name: numbers for name, numbers in gone.items() if len(numbers)}


class Pool(Protocol):
    """What may be removed from one network: its units or its weights.

    A removal is a bool tensor with one entry per candidate.
    """

    noun: str
    is_even: bool
    """Whether each candidate costs the same, wherever it is."""

    @property
    def candidates(self) -> Candidates:
        """Everything there is to choose from."""

    def doable(self, removed: Tensor) -> Tensor:
        """The largest part of a removal that edits can carry out; the least important stay in it.

        Its cost and its plan are those of this part.
        """

    def plan(self, removed: Tensor) -> list[Edit]:
        """The edits that carry a removal out."""

    def cost(self, removed: Tensor, kinds: Sequence[CostKind]) -> dict[CostKind, float]:
        """What the network would cost."""

    def obstacles(self, kind: CostKind) -> str:
        """What keeps this cost from falling further when all candidates are gone."""

    def gains(self, gradients: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensor:
        """First-order estimate of how much the loss falls when one removed candidate returns.

        Args:
            gradients: parameter name -> gradient of the loss at the network without a removal,
                in the layout of the network with everything.
            held: parameter name -> value with everything.

        Returns:
            Tensor (n,), larger = better to have back; of meaning only for what was removed.
        """

    def embedded(
        self, removed: Tensor, held: Mapping[str, Tensor], cut: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The network without the removed candidates, in the layout of the network with them.

        Args:
            removed: the removal.
            held: parameters and buffers with them.
            cut: the same without them.
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
    """Put what several owners have in one row and rank it.

    Args:
        scores: owner -> Tensor (number of candidates,).
        scope: how scores of different owners compare; see `comparable`.
        per: what scores are divided by; see `comparable`.
        indices: owner -> LongTensor, what its candidates are called within it.
        num_gone: owner -> how many were removed earlier.
        stays: owner -> bool tensor (number of candidates,), what cannot go.
    """
    ranked = comparable(scores, scope, per=per, num_gone=num_gone)
    row = _joined(list(ranked.values()), torch.float64)
    order = row.argsort(stable=True)
    order = order[~_joined([stays[name] for name in ranked], torch.bool)[order]]
    place = torch.full((len(row),), len(row), dtype=torch.int32)
    place[order] = torch.arange(len(order), dtype=torch.int32)
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
    """So many of the highest scores, or all: a bool tensor."""
    most = torch.zeros(len(scores), dtype=torch.bool)
    # The first of equals goes first, as in the order of candidates.
    most[scores.detach().cpu().argsort(stable=True)[max(0, len(scores) - number) :]] = True
    return most


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(part.to(dtype) for part in parts)])
