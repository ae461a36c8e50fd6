"""Compensation for many members at once: refitting the layer that reads removed units.

This is the least-squares fit of `structure.refit` for one consumer, the next layer. Its remaining
inputs do not change, so the fit follows from means and covariances C of its old inputs. With kept
units K and removed units R, the layer adds W_R C_RK (C_KK + ridge)⁻¹ to its weights W_K. Its bias
takes up the constant that is left.

Shapes: M members that shrink, U units of the layer (kept ones first, both parts padded), K kept
units, R removed units, O outputs of the consumer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynopt_ray.errors import DataError, EditError
from dynopt_ray.population.stack import Population
from dynopt_ray.structure import RIDGE, Moments, best_ridges, masked_ridge_solve, ridge_solve


def refit_consumers(
    population: Population, layer: int, keep: Mapping[int, Tensor], x_NI: Tensor
) -> None:
    """Refit the next layer of each member so that it needs only the kept units of `layer`.

    Args:
        population: the weights and biases of layer `layer + 1` change; widths do not change yet.
        layer: the hidden layer that will lose units.
        keep: member -> bool tensor, one entry per unit of the member.
        x_NI: inputs to refit on.

    Raises:
        EditError: activations or weights of a member are not finite, or too large to be squared.
    """
    members = list(keep)
    activations = _activations(population, members, layer, x_NI)
    _check_finite(population, members, layer, activations)
    try:
        _refit(population, layer, keep, activations)
    except DataError as error:
        raise EditError(f"layer {layer + 1} cannot be refitted: {error}") from error


def _check_finite(
    population: Population, members: list[int], layer: int, activations: Tensor
) -> None:
    for member, values in zip(members, activations, strict=True):
        read = population.weights[layer + 1][member], population.biases[layer + 1][member]
        if not all(bool(tensor.isfinite().all()) for tensor in (values, *read)):
            raise EditError(
                f"layer {layer + 1} of member {member} cannot be refitted: its inputs or weights "
                "are not finite on these rows"
            )


def _refit(
    population: Population, layer: int, keep: Mapping[int, Tensor], activations: Tensor
) -> None:
    members = list(keep)
    halves = [Moments.start(activations, num_outputs=0) for _ in range(2)]
    for half, moments in enumerate(halves):
        rows = activations[:, half::2]
        moments.add(rows, rows[:, :, :0])
    widest = activations.shape[2]
    num_kept = max(int(kept.sum()) for kept in keep.values())
    num_removed = max(len(kept) - int(kept.sum()) for kept in keep.values())
    order_MU = torch.full(
        (len(members), num_kept + num_removed), widest, dtype=torch.int64, device="cpu"
    )
    for row, kept in zip(order_MU, keep.values(), strict=True):
        stays, goes = kept.cpu().nonzero()[:, 0], (~kept.cpu()).nonzero()[:, 0]
        row[: len(stays)] = stays
        row[num_kept : num_kept + len(goes)] = goes
    order_MU = order_MU.to(population.device)
    weight_MOU = _take(population.weights[layer + 1][members].double(), order_MU, 2)
    stays_MOK = _stays(population, layer + 1, members, order_MU[:, :num_kept])
    one, other = (_ordered(moments, order_MU) for moments in halves)

    def loss(ridges: Tensor) -> Tensor:
        slope_MOK, shift_MO = _fit(one, weight_MOU, stays_MOK, ridges)
        # The error of the refitted layer is linear in the kept and removed inputs.
        lack_MOU = torch.cat([-slope_MOK, weight_MOU[:, :, num_kept:]], 2)
        mean_MO = (lack_MOU @ other.mean_MU[:, :, None])[..., 0] - shift_MO
        spread_M = (lack_MOU @ other.covariance_MUU * lack_MOU).sum((1, 2))
        return (spread_M + mean_MO.square().sum(1)).cpu()

    enough = all(moments.count for moments in halves)
    ridges = best_ridges(loss, len(members)) if enough else torch.tensor(RIDGE, device="cpu")
    everything = _ordered(halves[0].plus(halves[1]), order_MU)
    slope_MOK, shift_MO = _fit(everything, weight_MOU, stays_MOK, ridges)
    weight_MOK = weight_MOU[:, :, :num_kept] + slope_MOK
    _put(population, layer + 1, members, order_MU[:, :num_kept], weight_MOK, shift_MO)


@dataclass(frozen=True, eq=False)
class _Ordered:
    """Moments of each member's inputs, kept inputs first."""

    mean_MU: Tensor
    covariance_MUU: Tensor


def _ordered(moments: Moments, order_MU: Tensor) -> _Ordered:
    covariance_MUU = _take(_take(moments.covariance, order_MU, 1), order_MU, 2)
    return _Ordered(_take(moments.mean, order_MU, 1), covariance_MUU)


def _fit(
    inputs: _Ordered, weight_MOU: Tensor, stays_MOK: Tensor, ridges: Tensor
) -> tuple[Tensor, Tensor]:
    """Return coefficients with which kept inputs replace the removed ones, and a constant."""
    num_kept = stays_MOK.shape[2]
    left, gone = slice(num_kept), slice(num_kept, None)
    weight_MOR, covariance_MUU = weight_MOU[:, :, gone], inputs.covariance_MUU
    missing_MOK = weight_MOR @ covariance_MUU[:, gone, left]
    second_MKK, ridges = covariance_MUU[:, left, left], ridges.to(weight_MOU.device)
    if bool((stays_MOK == stays_MOK[:, :1]).all()):
        slope_MOK = ridge_solve(missing_MOK, second_MKK, stays_MOK[:, 0].sum(1), ridge=ridges)
    else:
        slope_MOK = masked_ridge_solve(missing_MOK, second_MKK, stays_MOK, ridge=ridges)
    shift_MO = (weight_MOR @ inputs.mean_MU[:, gone, None])[..., 0]
    return slope_MOK, shift_MO - (slope_MOK @ inputs.mean_MU[:, left, None])[..., 0]


def _stays(population: Population, layer: int, members: list[int], order_MK: Tensor) -> Tensor:
    """Return which coefficients may be non-zero: those that are neither padding nor masked."""
    keep = population.masks[layer]
    if keep is None:
        keep_MOI = torch.ones_like(population.weights[layer][members], dtype=torch.bool)
    else:
        keep_MOI = keep[members]
    return _take(keep_MOI, order_MK, 2)


def _activations(population: Population, members: list[int], layer: int, x_NI: Tensor) -> Tensor:
    values = x_NI.expand(len(members), -1, -1)
    with torch.no_grad():
        for index in range(layer + 1):
            weight, bias = population.weights[index][members], population.biases[index][members]
            values = torch.baddbmm(bias[:, None], values, weight.transpose(1, 2)).relu_()
    return values


def _put(
    population: Population,
    layer: int,
    members: list[int],
    order_MK: Tensor,
    weight_MOK: Tensor,
    shift_MO: Tensor,
) -> None:
    old = population.weights[layer][members]
    index_MOK = order_MK[:, None].expand(-1, old.shape[1], -1)
    # An additional column takes the values that are written at padding.
    wide = torch.nn.functional.pad(old, (0, 1)).scatter_(2, index_MOK, weight_MOK.to(old.dtype))
    population.weights[layer][members] = wide[:, :, : old.shape[2]]
    bias = population.biases[layer][members]
    population.biases[layer][members] = (bias.double() + shift_MO).to(bias.dtype)


def _take(values: Tensor, order_MU: Tensor, dim: int) -> Tensor:
    """Select along a dimension in each member's own order; the index `size` selects zero."""
    padding = [0, 0] * (values.ndim - 1 - dim) + [0, 1]
    padded = torch.nn.functional.pad(values, padding)
    index = order_MU
    for _ in range(1, dim):
        index = index.unsqueeze(1)
    for _ in range(dim + 1, values.ndim):
        index = index.unsqueeze(-1)
    shape = list(padded.shape)
    shape[dim] = order_MU.shape[1]
    return padded.gather(dim, index.expand(shape))
