"""What new units would be worth: how much of the loss's slope they could follow.

A layer gives z, and the loss would fall if z moved along r = -dLoss/dz. What a new unit can do
about that is the part of r that is linear in what it gives and that the units there cannot give.

Shapes: G groups of a convolution (or heads), K inputs, O outputs, as in `structure.readers`; N
inputs that are new, U new units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.criteria import Batch, Loss, observed, reading
from dynopt_ray.structure import RIDGE, Graph, Grow, Moments, Reader, WidthGroup
from dynopt_ray.training.loop import undone

_NUM_PICKS = 16


@dataclass(frozen=True, eq=False)
class Ranked:
    """Candidates for one group, best first.

    Attributes:
        order: LongTensor (U,), their numbers among the candidates.
        gains: Tensor (U,), what each adds to those before it, per sample.
    """

    order: Tensor
    gains: Tensor


def rank_candidates(
    graph: Graph,
    numbers: Mapping[str, int],
    batches: Sequence[Batch],
    loss: Loss,
    *,
    seed: int,
) -> dict[str, Ranked]:
    """Draw new units for some groups, and rank them by how far they could lower the loss.

    They are added for a moment, with outgoing weights of zero. With g = E r xᵀ about the means, C
    the covariance of all inputs x of a layer that reads them, and S, g' what is left of both once
    the inputs there have explained what they can, a unit u is worth

        gain(u) = Σ_layers places · tr(g'_u S_uu⁻¹ g'_uᵀ)

    The best is taken, explains its part, and the next is chosen. For groups that no linear layer or
    convolution reads the order is that of the draw and the gains are zero.

    Args:
        graph: the traced network; not changed.
        numbers: group name -> how many to draw; each can grow exactly.
        batches: training data.
        loss: (output, targets) -> mean loss.
        seed: `graph.apply` draws the same units from it.

    Raises:
        MissingGradientError: no samples, or the loss does not depend on a layer.
        DivergedError: inputs that are not finite.

    References:
        Evci et al. 2022, "GradMax": the norm of the gradient that new weights get, here that of
        drawn units. Verbockhaven et al. 2024, "Growing Tiny Networks" (TINY): only what the layer
        cannot do yet counts, in units of what a unit gives.
    """
    old = {name: graph[name].width for name in numbers}
    with undone(graph):
        graph.apply([Grow(name, number) for name, number in numbers.items()], seed=seed)
        groups = [graph[name] for name in numbers]
        readers = {s.parameter for group in groups for s in group.slices if s.role == "in"}
        sums = _summed(graph, readers & graph.consumers.keys(), batches, loss)
        pieces = {g.name: _pieces(graph, g, old[g.name], sums) for g in groups}
    return {name: _ranked(pieces[name], number) for name, number in numbers.items()}


@dataclass(frozen=True, eq=False)
class _Sums:
    """What is summed up about one weight."""

    reader: Reader
    moments: Moments
    places: float


def _summed(
    graph: Graph, names: set[str], batches: Sequence[Batch], loss: Loss
) -> dict[str, _Sums]:
    sums: dict[str, _Sums] = {}
    for batch in observed(graph, names, batches, loss):
        for (name, _), one in batch.items():
            assert one.slopes_RGO is not None
            x_GRK, r_GRO = one.seen.inputs_GRK.detach(), -one.slopes_RGO.transpose(0, 1)
            if name not in sums:
                moments = Moments.start(x_GRK, r_GRO.shape[2])
                sums[name] = _Sums(one.seen.reader, moments, one.places)
            sums[name].moments.add(x_GRK, r_GRO)
    return sums


class _Piece:
    """One group of one layer: what its new inputs could explain of its slopes."""

    def __init__(self, g_ON: Tensor, second_NN: Tensor, units_N: Tensor, places: float) -> None:
        order = units_N.argsort(stable=True)
        self._g_ON, self._second_NN = g_ON[:, order], second_NN[order][:, order]
        self._units_N, self._places = units_N[order], places

    def add_gains(self, gains_U: Tensor) -> None:
        """Add what each unit that is left would explain."""
        units = torch.unique(self._units_N)
        k_UQ = torch.arange(len(self._units_N)).reshape(len(units), -1)
        own = self._second_NN[k_UQ[:, :, None], k_UQ[:, None]]
        g_UQO = self._g_ON.T[k_UQ]
        gains_U[units] += self._places * (g_UQO * torch.linalg.solve(own, g_UQO)).sum((1, 2))

    def take(self, chosen: Tensor) -> None:
        """Let some units explain what they can."""
        goes = torch.isin(self._units_N, chosen)
        g_ON, second_NN = explained(self._g_ON, self._second_NN, goes)
        self._g_ON, self._second_NN, self._units_N = g_ON, second_NN, self._units_N[~goes]


def explained(g_ON: Tensor, second_NN: Tensor, by_N: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of slopes and second moments of inputs when others have explained their part."""
    left_N = ~by_N
    solved = torch.linalg.solve(second_NN[by_N][:, by_N], second_NN[by_N][:, left_N])
    g_left = g_ON[:, left_N] - g_ON[:, by_N] @ solved
    return g_left, second_NN[left_N][:, left_N] - second_NN[left_N][:, by_N] @ solved


def _pieces(
    graph: Graph, group: WidthGroup, old_width: int, sums: Mapping[str, _Sums]
) -> list[_Piece]:
    pieces = []
    for s in group.slices:
        if s.role != "in" or s.parameter not in sums:
            continue
        one, consumer = sums[s.parameter], graph.consumers[s.parameter][0]
        g_GOK, second_GKK = one.moments.centred(bool(consumer.bias or consumer.mean))
        weight = graph.model.get_parameter(s.parameter).detach()
        how = reading(weight, one.reader, s, len(second_GKK))
        units_GK = torch.full(second_GKK.shape[:2], -1)
        numbers = torch.arange(group.width)[:, None, None]
        units_GK[how.groups_UM[:, :, None], how.inputs_UMQ] = numbers - old_width
        scale_G = second_GKK.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        for g in (units_GK >= 0).any(1).nonzero()[:, 0].tolist():
            second_KK = second_GKK[g] + RIDGE * scale_G[g] * torch.eye(second_GKK.shape[1])
            is_old = units_GK[g] < 0
            g_ON, second_NN = explained(g_GOK[g], second_KK, is_old)
            pieces.append(_Piece(g_ON, second_NN, units_GK[g][~is_old], one.places))
    return pieces


def _ranked(pieces: Sequence[_Piece], number: int) -> Ranked:
    if not pieces:
        return Ranked(torch.arange(number), torch.zeros(number, dtype=torch.float64))
    order: list[Tensor] = []
    gains: list[Tensor] = []
    left = torch.ones(number, dtype=torch.bool)
    while bool(left.any()):
        worth = torch.zeros(number, dtype=torch.float64)
        for piece in pieces:
            piece.add_gains(worth)
        worth[~left] = -1.0
        best = worth.topk(min(max(1, number // _NUM_PICKS), int(left.sum())))
        order.append(best.indices)
        gains.append(best.values)
        left[best.indices] = False
        if bool(left.any()):
            for piece in pieces:
                piece.take(best.indices)
    return Ranked(torch.cat(order), torch.cat(gains))
