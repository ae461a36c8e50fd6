"""The gain of new units: how much they could lower the loss that the present units cannot.

Let z be the output of a layer that reads the units of a group. The loss falls fastest if z moves
along r = -dLoss/dz. A change of the layer's weights moves z by a linear function of the layer's
inputs. The present inputs can follow a part of r, which is its least-squares fit to them; this part
is left to ordinary training. A new unit can follow more of r only by the part of its output that
the present inputs do not explain. Its gain is the mean square of the least-squares fit of the rest
of r to this part. To first order, this is the right measure: among all small changes of z of equal
mean square that the new unit adds, the change along this fit lowers the loss fastest, in proportion
to the square root of the gain.

The gains follow from the second moments of inputs and r, which are summed over all batches. The
rest after a fit to some inputs is a Schur complement (`explained`). Units are ranked greedily: the
best ones are taken and join the fit, and then the gains of the others are computed again. Therefore
only one of two units that do the same is ranked high. The candidates have outgoing weights of zero
while they are judged, so they do not change the network's output.

Shapes: G groups of a convolution (or heads), K inputs, O outputs, as in
`dynopt_ray.structure.tracing.readers`; R rows, N new inputs, U new units, Q inputs of one unit.
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
    """The candidates for one group, best first.

    Attributes:
        order: LongTensor (U,), the indices of the candidates in the draw.
        gains: Tensor (U,), float64, >= 0, the gain that each adds to those before it, per sample.
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
    """Draw new units for some groups and rank them by how much they could lower the loss.

    The units are added temporarily, with outgoing weights of zero. For a layer that reads them, let
    x be all of its inputs, C their covariance, and g = E[r xᵀ] about the means. Let S and g' be the
    remainders of C and g after a least-squares fit to the present inputs. Then a unit u has

        gain(u) = Σ_layers places · tr(g'_u S_uu⁻¹ g'_uᵀ)

    where `places` is the number of places of a sample (e.g. pixels) to which the layer is applied.
    The units with the largest gains are taken, about a sixteenth of all at a time, and join the fit
    for the next ones. If no linear layer or convolution reads a group, its units keep the order of
    the draw and have gains of zero.

    Args:
        graph: the traced network; it is restored.
        numbers: group name -> number of units to draw. Each group must be able to grow exactly.
        batches: training data.
        loss: (output, targets) -> mean loss.
        seed: seed of the draw. `graph.apply` draws the same units from it.

    Raises:
        MissingGradientError: there are no samples, or the loss does not depend on a layer.
        DivergedError: inputs of a layer are not finite.

    References:
        Evci et al. 2022, "GradMax": the norm of the gradient of new weights; here it is that of
        units that are drawn at random. Verbockhaven et al. 2024, "Growing Tiny Networks" (TINY):
        only what the layer cannot do yet counts, relative to the size of a unit's output.
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
    """Sums over all batches for one weight: second moments, and places per sample."""

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
    """One group of one layer: the remainders g' and S for the new units not yet taken."""

    def __init__(self, g_ON: Tensor, second_NN: Tensor, units_N: Tensor, places: float) -> None:
        order = units_N.argsort(stable=True)
        self._g_ON, self._second_NN = g_ON[:, order], second_NN[order][:, order]
        self._units_N, self._places = units_N[order], places

    def add_gains(self, gains_U: Tensor) -> None:
        """Add the gain of each unit not yet taken to `gains_U`."""
        units = torch.unique(self._units_N)
        k_UQ = torch.arange(len(self._units_N), device="cpu").reshape(len(units), -1)
        own = self._second_NN[k_UQ[:, :, None], k_UQ[:, None]]
        g_UQO = self._g_ON.T[k_UQ]
        gains_U[units] += self._places * (g_UQO * torch.linalg.solve(own, g_UQO)).sum((1, 2))

    def take(self, chosen: Tensor) -> None:
        """Take some units: reduce g' and S to what these do not explain."""
        goes = torch.isin(self._units_N, chosen)
        g_ON, second_NN = explained(self._g_ON, self._second_NN, goes)
        self._g_ON, self._second_NN, self._units_N = g_ON, second_NN, self._units_N[~goes]


def explained(g_ON: Tensor, second_NN: Tensor, by_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the remainders of g and of second moments after a fit to the inputs `by_N`."""
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
        # The rest is many small steps, for each of which the CPU would wait for a GPU.
        g_GOK, second_GKK = (
            moment.cpu() for moment in one.moments.centred(bool(consumer.bias or consumer.mean))
        )
        weight = graph.model.get_parameter(s.parameter).detach()
        how = reading(weight, one.reader, s, len(second_GKK))
        units_GK = torch.full(second_GKK.shape[:2], -1, device="cpu")
        numbers = torch.arange(group.width, device="cpu")[:, None, None]
        units_GK[how.groups_UM.cpu()[:, :, None], how.inputs_UMQ.cpu()] = numbers - old_width
        scale_G = second_GKK.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        for g in (units_GK >= 0).any(1).nonzero()[:, 0].tolist():
            second_KK = second_GKK[g] + RIDGE * scale_G[g] * torch.eye(
                second_GKK.shape[1], device="cpu"
            )
            is_old = units_GK[g] < 0
            g_ON, second_NN = explained(g_GOK[g], second_KK, is_old)
            pieces.append(_Piece(g_ON, second_NN, units_GK[g][~is_old], one.places))
    return pieces


def _ranked(pieces: Sequence[_Piece], number: int) -> Ranked:
    if not pieces:
        return Ranked(
            torch.arange(number, device="cpu"),
            torch.zeros(number, dtype=torch.float64, device="cpu"),
        )
    order: list[Tensor] = []
    gains: list[Tensor] = []
    left = torch.ones(number, dtype=torch.bool, device="cpu")
    while bool(left.any()):
        worth = torch.zeros(number, dtype=torch.float64, device="cpu")
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
