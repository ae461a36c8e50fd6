"""What may be removed from a network, in which order: the view that units and weights share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dynopt_ray.criteria import Scope, comparable
from dynopt_ray.structure import Edit
from dynopt_ray.training.targets import CostKind


@dataclass(frozen=True, eq=False)
class Candidates:
    """All units (or weights) of a network in one row, on the CPU.

    Attributes:
        names: the groups (or parameters) they belong to.
        owner: LongTensor (n,), the index in `names` of each.
        index: LongTensor (n,), the number of each within its owner.
        scores: (n,), as the criterion gave them.
        ranked: (n,), the same made comparable across owners.
        order: LongTensor, those that may go, least important first.
        num_gone: how many were removed in earlier rounds.
    """

    names: tuple[str, ...]
    owner: Tensor
    index: Tensor
    scores: Tensor
    ranked: Tensor
    order: Tensor
    num_gone: int

    def __len__(self) -> int:
        return len(self.owner)

    def none(self) -> Tensor:
        """The bool tensor (n,) of a removal of nothing."""
        return torch.zeros(len(self), dtype=torch.bool)

    def mark(self, items: Tensor) -> Tensor:
        """The bool tensor (n,) that is True at these items."""
        return self.none().index_fill_(0, items, True)

    def of(self, removed: Tensor, owner: int) -> Tensor:
        """The numbers, within one owner, of what is removed of it."""
        return self.index[removed & (self.owner == owner)]


class Pool(Protocol):
    """What may be removed from one network: its units or its weights.

    A removal is a bool tensor with one entry per candidate.
    """

    noun: str

    @property
    def candidates(self) -> Candidates:
        """Everything there is to choose from."""

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
    indices: Mapping[str, Tensor],
    num_gone: Mapping[str, int],
    fewest: Mapping[str, int],
) -> Candidates:
    """Put what several owners have in one row and rank it.

    Args:
        scores: owner -> Tensor (number of candidates,).
        scope: how scores of different owners compare; see `comparable`.
        indices: owner -> LongTensor, what its candidates are called within it.
        num_gone: owner -> how many were removed earlier.
        fewest: owner -> how many have to stay. The most important ones do.
    """
    ranked = comparable(scores, scope, num_gone=num_gone)
    owners, may_go = [], []
    for number, (name, rank) in enumerate(ranked.items()):
        owners.append(torch.full((len(rank),), number))
        goes = torch.ones(len(rank), dtype=torch.bool)
        goes[rank.argsort(stable=True, descending=True)[: fewest[name]]] = False
        may_go.append(goes)
    row = _joined(list(ranked.values()), torch.float64)
    order = row.argsort(stable=True)
    return Candidates(
        names=tuple(ranked),
        owner=_joined(owners, torch.long),
        index=_joined([indices[name] for name in ranked], torch.long),
        scores=_joined([scores[name].detach().cpu() for name in ranked], torch.float64),
        ranked=row,
        order=order[_joined(may_go, torch.bool)[order]],
        num_gone=sum(num_gone.values()),
    )


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(part.to(dtype) for part in parts)])


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
