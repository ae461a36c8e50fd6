"""Reading a real network, and turning an action on it into a plan of edits."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.policies.actions import ActionKind, ActionSet
from dynopt_ray.policies.descriptors import KINDS, Descriptors
from dynopt_ray.policies.unit_scores import group_scores, lowest, pruned, summarise
from dynopt_ray.policies.utilities import CHARGED_COSTS
from dynopt_ray.structure import Cost, Edit, Graph, Grow, Mask, Shrink, WidthGroup, mask_of


def describe_graph(
    graph: Graph,
    cursor: int,
    *,
    start_widths: Mapping[str, int],
    start_cost: Cost,
    actions: ActionSet,
) -> Descriptors:
    """The reading of one network with the cursor on its group number `cursor`."""
    group = graph.groups[cursor]
    weights = producing_weights(graph, group)
    kept = [num_unmasked(weight) for weight in weights.values()]
    quantiles, dead, redundant = summarise(
        group_scores(graph, group)[None],
        _incoming(graph, group)[None],
        torch.tensor([group.width]),
    )
    cost = graph.cost()
    return Descriptors(
        widths=_row([g.width for g in graph.groups]),
        start_widths=_row([start_widths[g.name] for g in graph.groups]),
        cursor=np.array([cursor]),
        min_width=np.array([group.min_width]),
        step=np.array([group.step]),
        kind=np.array([_kind(weights)]),
        quantiles=quantiles.cpu().numpy(),
        dead=dead.cpu().numpy().astype(np.float64),
        redundant=redundant.cpu().numpy().astype(np.float64),
        num_weights=np.array([sum(weight.numel() for weight in weights.values())]),
        num_unmasked=np.array([sum(kept)]),
        num_prunable=np.array([int(actions.weights_to_prune(np.array(kept)).sum())]),
        cost_share=np.array([_nonzero_of(graph, group) / max(cost.nonzero, 1)]),
        costs=np.array([[cost.relative_to(start_cost, kind) for kind in CHARGED_COSTS]]),
        nonzero=np.array([cost.nonzero]),
    )


def plan_action(
    graph: Graph, reading: Descriptors, action: ActionKind, actions: ActionSet
) -> list[Edit]:
    """The edits that an action on the group under the cursor stands for; none for keep and stop.

    Args:
        graph: the network.
        reading: of this very network.
        action: a legal action.
        actions: how much it changes.
    """
    group = graph.groups[int(reading.cursor[0])]
    if action is ActionKind.GROW:
        units = actions.units_to_grow(reading.width, reading.start_width, reading.step)
        return [Grow(group.name, units=int(units[0]), exact=group.exact_growth)]
    if action is ActionKind.SHRINK:
        count = actions.units_to_shrink(reading.width, reading.min_width, reading.step)
        scores = group_scores(graph, group)[None]
        gone = lowest(scores, torch.tensor([group.width]), torch.from_numpy(count))
        return [Shrink(group.name, remove=torch.nonzero(gone[0]).flatten().tolist())]
    if action is ActionKind.PRUNE:
        return _masks(graph, group, actions)
    return []


def producing_weights(graph: Graph, group: WidthGroup) -> dict[str, Tensor]:
    """The parameters of two or more dimensions that make the group's units, by name."""
    parameters = dict(graph.model.named_parameters())
    return {
        s.parameter: parameters[s.parameter]
        for s in group.slices
        if s.role == "out" and s.parameter in parameters and parameters[s.parameter].ndim > 1
    }


def num_unmasked(weight: Tensor) -> int:
    """How many entries of a parameter are not held at zero."""
    keep = mask_of(weight)
    return weight.numel() if keep is None else int(keep.sum())


def _masks(graph: Graph, group: WidthGroup, actions: ActionSet) -> list[Edit]:
    edits: list[Edit] = []
    for name, weight in producing_weights(graph, group).items():
        count = int(actions.weights_to_prune(np.array([num_unmasked(weight)]))[0])
        if count:
            edits.append(Mask(name, keep=pruned(weight, mask_of(weight), count)))
    return edits


def _incoming(graph: Graph, group: WidthGroup) -> Tensor:
    """Each unit's weights in the first parameter that makes it, (width, D)."""
    for s in group.slices:
        weight = producing_weights(graph, group).get(s.parameter)
        if s.role == "out" and weight is not None:
            rows = weight.detach().movedim(s.dim, 0)[s.positions.to(weight.device)]
            return rows.reshape(group.width, -1).cpu()
    return torch.zeros(group.width, 1)


def _nonzero_of(graph: Graph, group: WidthGroup) -> int:
    parameters = dict(graph.model.named_parameters())
    names = {s.parameter for s in group.slices if s.parameter in parameters}
    return sum(int(parameters[name].count_nonzero()) for name in names)


def _kind(weights: Mapping[str, Tensor]) -> int:
    ndim = next((weight.ndim for weight in weights.values()), 0)
    return KINDS.index("linear" if ndim == 2 else "convolution" if ndim > 2 else "other")


def _row(values: list[int]) -> IntArray:
    return np.array([values], dtype=np.int64)
