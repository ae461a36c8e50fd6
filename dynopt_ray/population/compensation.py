"""Compensation for many members at once: refitting the layer that reads removed units.

This is the least-squares fit of `structure.refit` for one consumer, the next layer. Its remaining
inputs do not change, so the fit follows from means and covariances C of its old inputs. With kept
units K and removed units R, the layer adds W_R C_RK (C_KK + ridge)⁻¹ to its weights W_K. Its bias
takes up the constant that is left.

Shapes: M members that shrink, U units of the layer (kept ones first, both parts padded), K kept
units, R removed units, O outputs of the consumer.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.errors import DataError, EditError
from dynopt_ray.population.stack import Population
from dynopt_ray.structure import (
    RIDGE,
    Moments,
    best_ridges,
    masked_ridge_solve,
    ridge_solve,
)
from dynopt_ray.transfers import array_to_device, read_together


@dataclass(frozen=True, eq=False)
class ShrunkUnits:
    """The units that members lose in a layer: which, on the device; how many, on the host.

    Attributes:
        members: the members.
        places: the same on the device.
        order_MU: each member's units: kept units, removed units, then padding.
        num_kept_M: number of units that each keeps.
        num_gone_M: number of units that each loses.
    """

    members: IntArray
    places: Tensor
    order_MU: Tensor
    num_kept_M: IntArray
    num_gone_M: IntArray


def refit_consumers(population: Population, layer: int, cut: ShrunkUnits, x_NI: Tensor) -> None:
    """Refit the next layer of each member so that it needs only the kept units of `layer`.

    Args:
        population: the weights and biases of layer `layer + 1` change; widths do not change yet.
        layer: the hidden layer that will lose units.
        cut: the units that it will lose.
        x_NI: inputs to refit on.

    Raises:
        EditError: activations or weights of a member are not finite, or too large to be squared.
    """
    activations = _activations(population, cut.places, layer, x_NI)
    read = population.weights[layer + 1][cut.places], population.biases[layer + 1][cut.places]
    finite_M = torch.stack([values.isfinite().flatten(1).all(1) for values in (activations, *read)])
    regression = _Regression(population, layer, cut, activations)
    waits = population.device.type == "cpu"
    try:
        if waits:
            _check_finite(layer, cut.members, finite_M)
            found = regression.solved()
        else:
            # Solve first and ask afterwards, so that the host waits once.
            successes: list[Tensor] = []
            found = regression.solved(successes)
            finite_M, success = read_together([finite_M, torch.stack(successes).all()])
            _check_finite(layer, cut.members, finite_M)
            if not bool(success):
                found = regression.solved()
    except DataError as error:
        raise EditError(f"layer {layer + 1} cannot be refitted: {error}") from error
    _put(population, layer + 1, cut.places, regression.kept_MK, *found)


def _check_finite(layer: int, members: IntArray, finite_M: Tensor) -> None:
    for member, finite in zip(members, finite_M.all(0).tolist(), strict=True):
        if not finite:
            raise EditError(
                f"layer {layer + 1} of member {member} cannot be refitted: its inputs or weights "
                "are not finite on these rows"
            )


class _Regression:
    """The regressions of all members, on two halves of the rows.

    Attributes:
        kept_MK: each member's kept units, padded with the number of the first unit beyond all.
    """

    def __init__(
        self, population: Population, layer: int, cut: ShrunkUnits, activations: Tensor
    ) -> None:
        halves = [Moments.start(activations, num_outputs=0) for _ in range(2)]
        for half, moments in enumerate(halves):
            rows = activations[:, half::2]
            moments.add(rows, rows[:, :, :0])
        self._num_kept = int(cut.num_kept_M.max())
        order_MU = _padded_order(cut, activations.shape[2])
        self.kept_MK = order_MU[:, : self._num_kept]
        weight = population.weights[layer + 1][cut.places]
        self._weight_MOU = _take(weight.double(), order_MU, 2)
        self._stays = _stays(population, layer + 1, cut.places, self.kept_MK)
        self._one, self._other = (_ordered(moments, order_MU) for moments in halves)
        self._all = _ordered(halves[0].plus(halves[1]), order_MU)
        self._enough = all(moments.count for moments in halves)

    def solved(self, successes: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the weights that read the kept units, and the constant that is left.

        Args:
            successes: see `ridge_solve`.
        """
        fit = partial(_fit, weight_MOU=self._weight_MOU, stays=self._stays, successes=successes)

        def loss(ridges: Tensor) -> Tensor:
            slope_MOK, shift_MO = fit(self._one, ridges=ridges)
            # The error of the refitted layer is linear in the kept and removed inputs.
            lack_MOU = torch.cat([-slope_MOK, self._weight_MOU[:, :, self._num_kept :]], 2)
            mean_MO = (lack_MOU @ self._other.mean_MU[:, :, None])[..., 0] - shift_MO
            spread_M = (lack_MOU @ self._other.covariance_MUU * lack_MOU).sum((1, 2))
            return spread_M + mean_MO.square().sum(1)

        device, num_members = self._weight_MOU.device, len(self._weight_MOU)
        ridges: float | Tensor = RIDGE
        if self._enough:
            ridges = best_ridges(loss, num_members, device=device)
        slope_MOK, shift_MO = fit(self._all, ridges=ridges)
        return self._weight_MOU[:, :, : self._num_kept] + slope_MOK, shift_MO


def _padded_order(cut: ShrunkUnits, size: int) -> Tensor:
    """Return each member's kept units, then its removed units, both padded with `size`."""
    parts = []
    kept_M1 = array_to_device(cut.num_kept_M, cut.order_MU.device)[:, None]
    gone_M1 = array_to_device(cut.num_gone_M, cut.order_MU.device)[:, None]
    for start_M1, count_M1, most in (
        (torch.zeros_like(kept_M1), kept_M1, int(cut.num_kept_M.max())),
        (kept_M1, gone_M1, int(cut.num_gone_M.max())),
    ):
        place_U = torch.arange(most, device=cut.order_MU.device)
        taken_MU = (start_M1 + place_U).clamp(max=size - 1)
        part_MU = cut.order_MU.gather(1, taken_MU)
        parts.append(part_MU.masked_fill(place_U >= count_M1, size))
    return torch.cat(parts, 1)


@dataclass(frozen=True, eq=False)
class _Ordered:
    """Moments of each member's inputs, kept inputs first."""

    mean_MU: Tensor
    covariance_MUU: Tensor


def _ordered(moments: Moments, order_MU: Tensor) -> _Ordered:
    covariance_MUU = _take(_take(moments.covariance, order_MU, 1), order_MU, 2)
    return _Ordered(_take(moments.mean, order_MU, 1), covariance_MUU)


def _fit(
    inputs: _Ordered,
    *,
    weight_MOU: Tensor,
    stays: Tensor,
    ridges: float | Tensor,
    successes: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return coefficients with which kept inputs replace the removed ones, and a constant."""
    left, gone = slice(stays.shape[-1]), slice(stays.shape[-1], None)
    weight_MOR, covariance_MUU = weight_MOU[:, :, gone], inputs.covariance_MUU
    missing_MOK = weight_MOR @ covariance_MUU[:, gone, left]
    second_MKK = covariance_MUU[:, left, left]
    if stays.ndim == 3:
        slope_MOK = masked_ridge_solve(
            missing_MOK, second_MKK, stays, ridge=ridges, solved=successes
        )
    else:
        slope_MOK = ridge_solve(
            missing_MOK, second_MKK, stays.sum(1), ridge=ridges, solved=successes
        )
    shift_MO = (weight_MOR @ inputs.mean_MU[:, gone, None])[..., 0]
    return slope_MOK, shift_MO - (slope_MOK @ inputs.mean_MU[:, left, None])[..., 0]


def _stays(population: Population, layer: int, places: Tensor, order_MK: Tensor) -> Tensor:
    """Return which coefficients may be non-zero: those that are neither padding nor masked.

    Returns:
        (M, O, K), or if no member has a mask, (M, K).
    """
    keep = population.masks[layer]
    if keep is None:
        return order_MK < population.weights[layer].shape[2]
    return _take(keep[places], order_MK, 2)


def _activations(population: Population, places: Tensor, layer: int, x_NI: Tensor) -> Tensor:
    values = x_NI.expand(len(places), -1, -1)
    with torch.no_grad():
        for index in range(layer + 1):
            weight, bias = population.weights[index][places], population.biases[index][places]
            values = torch.baddbmm(bias[:, None], values, weight.transpose(1, 2)).relu_()
    return values


def _put(
    population: Population,
    layer: int,
    places: Tensor,
    order_MK: Tensor,
    weight_MOK: Tensor,
    shift_MO: Tensor,
) -> None:
    old = population.weights[layer][places]
    index_MOK = order_MK[:, None].expand(-1, old.shape[1], -1)
    # An additional column takes the values that are written at padding.
    wide = torch.nn.functional.pad(old, (0, 1)).scatter_(2, index_MOK, weight_MOK.to(old.dtype))
    population.weights[layer][places] = wide[:, :, : old.shape[2]]
    bias = population.biases[layer][places]
    population.biases[layer][places] = (bias.double() + shift_MO).to(bias.dtype)


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
