"""Single weights as candidates for removal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria import Per, Scope
from dynopt_ray.structure import Cost, CostKind, Edit, Graph, Mask, mask_of
from dynopt_ray.training.budgets import is_nonzero
from dynopt_ray.training.pruning.candidates import Candidates, list_candidates, most_important
from dynopt_ray.training.pruning.patterns import Pattern

_FEWEST = 1


@dataclass(frozen=True, eq=False)
class WeightPool:
    """The pool of the weights of a network that are not masked yet; see `Pool`.

    Attributes:
        graph: the traced network.
        cost_now: the present cost of the network.
        candidates: its unmasked weights.
        nonzero: bool tensor, one entry per candidate, whether the weight counts as non-zero.
        num_nonzero: number of non-zero parameters, including those that are not candidates.
    """

    graph: Graph
    cost_now: Cost
    candidates: Candidates
    nonzero: Tensor
    num_nonzero: int
    noun = "weights"
    is_even = True

    def doable(self, removed: Tensor) -> Tensor:
        """Return the whole removal, because masks can remove any weights."""
        return removed

    def plan(self, removed: Tensor) -> list[Edit]:
        """Return one `Mask` for each parameter that loses weights; earlier masks are included."""
        plan: list[Edit] = []
        for name, gone in self.candidates.removed_from(removed).items():
            keep = mask_or_ones(self.graph.model.get_parameter(name)).clone()
            keep.view(-1)[gone] = False
            plan.append(Mask(name, keep=keep))
        return plan

    def cost(self, removed: Tensor, kinds: Sequence[CostKind]) -> dict[CostKind, float]:
        """Return the present costs, of which only the number of non-zero weights falls."""
        values: dict[CostKind, float] = {kind: getattr(self.cost_now, kind) for kind in kinds}
        if "nonzero" in values:
            values["nonzero"] = self.num_nonzero - int((removed & self.nonzero).sum())
        return values

    def obstacles(self, kind: CostKind) -> str:
        """Say which costs or parameters masks cannot reduce."""
        if kind != "nonzero":
            return (
                "masked weights stay in their tensors, so this cost does not change. Use "
                "granularity='unit', or limit nonzero"
            )
        return "only biases, normalisation scales and one weight per parameter are left"

    def gains(self, gradients: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensor:
        """Return −gradient · weight."""
        parts = [
            -(gradients[name] * held[name]).flatten().cpu()[index]
            for name, index in self.candidates.per_owner(self.candidates.index).items()
        ]
        return torch.cat([torch.empty(0, device="cpu"), *parts])

    def embedded(
        self, removed: Tensor, held: Mapping[str, Tensor], cut: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the parameters and buffers as they are, because masks do not change the layout."""
        del removed, held
        return dict(cut)


def weight_pool(
    graph: Graph,
    cost_now: Cost,
    scores: Mapping[str, Tensor],
    scope: Scope,
    *,
    per: Per = "length",
    pattern: Pattern | None = None,
    lasting: bool = False,
) -> WeightPool:
    """Rank the weights of a network that are not masked yet and return them as a pool.

    Args:
        graph: the traced network.
        cost_now: the present cost of the network.
        scores: parameter name -> tensor of its shape.
        scope: how scores of different parameters are compared.
        per: what scores are divided by; see `comparable`.
        pattern: if given, only the weights that exceed it may be removed.
        lasting: whether only masked entries count as zero; see `NonzeroCount`.

    Raises:
        EditError: no weight has whole blocks of inputs for the pattern.
    """
    scores = {name: score.detach().cpu() for name, score in scores.items()}
    if pattern is not None:
        dims = pattern.dims(graph, scores)
        scores = {name: scores[name] for name in dims}
    kept = {name: mask_or_ones(graph.model.get_parameter(name)) for name in scores}
    left = {name: scores[name][keep] for name, keep in kept.items()}
    if pattern is None:
        stays = {name: most_important(score, _FEWEST) for name, score in left.items()}
    else:
        stays = {n: ~pattern.must_go(scores[n], kept[n], dims[n])[kept[n]] for n in scores}
    candidates = list_candidates(
        left,
        scope,
        per=per,
        indices={name: keep.flatten().nonzero()[:, 0] for name, keep in kept.items()},
        num_gone={name: int((~keep).sum()) for name, keep in kept.items()},
        stays=stays,
    )
    parameters = graph.model.named_parameters()
    counted = {name: is_nonzero(parameter, lasting=lasting) for name, parameter in parameters}
    nonzero = [counted[name].cpu()[keep] for name, keep in kept.items()]
    return WeightPool(
        graph,
        cost_now,
        candidates,
        torch.cat([torch.empty(0, dtype=torch.bool, device="cpu"), *nonzero]),
        sum(int(counts.sum()) for counts in counted.values()),
    )


def mask_or_ones(parameter: Tensor) -> Tensor:
    """Return the mask of a parameter, contiguous and on the CPU; all True if it has none."""
    keep = mask_of(parameter)
    if keep is None:
        return torch.ones(parameter.shape, dtype=torch.bool, device="cpu")
    return keep.cpu().contiguous()
