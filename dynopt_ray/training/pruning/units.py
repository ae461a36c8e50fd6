"""Units as candidates for removal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynopt_ray.criteria import Per, Scope, reading_roles, sum_over_units
from dynopt_ray.errors import EditError
from dynopt_ray.structure import CostKind, Edit, Graph, Shrink
from dynopt_ray.training.budgets import NonzeroCount, Widths
from dynopt_ray.training.loop import Costs
from dynopt_ray.training.pruning.candidates import Candidates, list_candidates, most_important

_NUM_NAMED = 3


@dataclass(frozen=True, eq=False)
class UnitPool:
    """The pool of the units of a network's width groups; see `Pool`.

    Attributes:
        graph: the traced network.
        costs: the costs of the network.
        candidates: all units.
        lasting: see `NonzeroCount`.
    """

    graph: Graph
    costs: Costs
    candidates: Candidates
    lasting: bool
    noun = "units"
    is_even = False

    def doable(self, removed: Tensor) -> Tensor:
        """Keep the most important units that a group would lose beyond a multiple of its step."""
        steps = {group.name: group.step for group in self.graph if group.step > 1}
        if not steps:
            return removed
        removed = removed.clone()
        places = self.candidates.per_owner(self.candidates.place)
        parts = self.candidates.per_owner(removed)  # views
        for name, step in steps.items():
            gone = parts[name].nonzero()[:, 0]
            beyond = places[name][gone].topk(len(gone) % step).indices
            parts[name][gone[beyond]] = False
        return removed

    def plan(self, removed: Tensor) -> list[Edit]:
        """Return one `Shrink` for each group that loses units."""
        plan: list[Edit] = []
        for name, units in self.candidates.removed_from(self.doable(removed)).items():
            plan.append(Shrink(name, remove=units.tolist()))
        return plan

    def cost(self, removed: Tensor, kinds: Sequence[CostKind]) -> dict[CostKind, float]:
        """Compute the costs from the units that stay; a latency is predicted by a model."""
        left = self.candidates.per_owner(~self.doable(removed))
        return {kind: self._computed(left, kind) for kind in kinds}

    def obstacles(self, kind: CostKind) -> str:
        """Name the groups that hold most of the cost at their minimum widths."""
        left = self.candidates.per_owner(~self.candidates.first(len(self.candidates)))
        least = {name: int(kept.sum()) for name, kept in left.items()}
        total = self._computed(left, kind)
        held = {
            name: total - self._computed({**left, name: torch.zeros_like(kept)}, kind)
            for name, kept in left.items()
        }
        return most_held(least, held)

    @cached_property
    def _num_nonzero(self) -> NonzeroCount:
        return NonzeroCount(self.graph, lasting=self.lasting)

    def _computed(self, left: Mapping[str, Tensor], kind: CostKind) -> float:
        if kind == "nonzero":
            return self._num_nonzero(left)
        widths = {name: int(kept.sum()) for name, kept in left.items()}
        if kind == "latency_ms":
            return self.costs.latency_ms_at(widths)
        return float(getattr(self.costs.at(widths), kind))

    def gains(self, gradients: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensor:
        """Return −Σ gradient · weight, over the weights that read the unit."""
        products = {name: -(gradient * held[name]) for name, gradient in gradients.items()}
        parts = [
            sum_over_units(self.graph[name], products, roles=reading_roles(self.graph[name]))
            for name in self.candidates.names
        ]
        return torch.cat([part.cpu() for part in parts])

    def embedded(
        self, removed: Tensor, held: Mapping[str, Tensor], cut: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the rest at its old places; weights that read removed units are zero."""
        kept: dict[str, dict[int, Tensor]] = {}
        read: list[tuple[str, int, Tensor]] = []
        for name, units in self.candidates.removed_from(removed).items():
            roles = reading_roles(self.graph[name])
            for s in self.graph[name].slices:
                gone = s.positions[units].flatten()
                dims = kept.setdefault(s.parameter, {})
                stays = dims.setdefault(
                    s.dim,
                    torch.ones(held[s.parameter].shape[s.dim], dtype=torch.bool, device="cpu"),
                )
                stays[gone] = False
                if s.role in roles:
                    read.append((s.parameter, s.dim, gone))
        result = {name: value.clone() for name, value in cut.items() if name not in kept}
        for name, dims in kept.items():
            full = held[name].clone()
            places = [
                dims.get(d, torch.ones(size, dtype=torch.bool, device="cpu")).nonzero()[:, 0]
                for d, size in enumerate(full.shape)
            ]
            full[torch.meshgrid(*(p.to(full.device) for p in places), indexing="ij")] = cut[name]
            result[name] = full
        for name, dim, gone in read:
            result[name].index_fill_(dim, gone.to(result[name].device), 0)
        return result


def unit_pool(
    graph: Graph,
    costs: Costs,
    scores: Mapping[str, Tensor],
    scope: Scope,
    *,
    per: Per = "mean",
    start_widths: Widths,
    min_widths: Widths,
    lasting: bool = False,
) -> UnitPool:
    """Rank the units of a network and return them as a pool.

    Args:
        graph: the traced network.
        costs: the costs of the network.
        scores: group name -> Tensor (width,).
        scope: how scores of different groups are compared.
        per: what scores are divided by; see `comparable`.
        start_widths: group name -> width before the first round.
        min_widths: group name -> fewest units to keep, if more than the group itself requires.
        lasting: whether only masked entries count as zero; see `NonzeroCount`.

    Raises:
        EditError: an entry of `min_widths` is below 1 or above the width at the start.
        UnknownNameError: a name in `min_widths` is not a group.
    """
    fewest = least_widths(graph, start_widths=start_widths, min_widths=min_widths)
    candidates = list_candidates(
        scores,
        scope,
        per=per,
        indices={group.name: torch.arange(group.width, device="cpu") for group in graph},
        num_gone={group.name: start_widths[group.name] - group.width for group in graph},
        stays={name: most_important(score, fewest[name]) for name, score in scores.items()},
    )
    return UnitPool(graph, costs, candidates, lasting)


def least_widths(graph: Graph, *, start_widths: Widths, min_widths: Widths) -> dict[str, int]:
    """Return group name -> fewest units to keep; see `unit_pool`."""
    fewest = {group.name: group.min_width for group in graph}
    for name, width in min_widths.items():
        group = graph[name]
        if not 1 <= width <= start_widths[group.name]:
            raise EditError(
                f"min_widths: {name!r} has {start_widths[group.name]} units, so it cannot keep at "
                f"least {width!r}; give a number from 1 to {start_widths[group.name]}"
            )
        fewest[group.name] = max(width, group.min_width)
    return fewest


def most_held(least: Widths, held: Mapping[str, float]) -> str:
    """Explain why a cost cannot fall further: name the groups that hold most of it.

    Args:
        least: group name -> its minimum width.
        held: group name -> the cost that would vanish with the group.
    """
    if not least:
        return "there is no group to shrink"
    most = sorted(least, key=lambda name: -held[name])[:_NUM_NAMED]
    return (
        "every group is at its minimum width, and those that hold most of what is left are "
        f"{_listed({name: least[name] for name in most})}"
    )


def _listed(widths: Widths) -> str:
    return ", ".join(f"{name!r} ({width})" for name, width in widths.items())
