"""Compensation for many members at once: refitting the layers that lose inputs or weights.

This is `structure.refit` for MLPs. Layers are refitted in forward order. Each is fitted to its
outputs in the original network, on the inputs that it gets in the cut network after the layers
before it were refitted. The regression explains what its outputs lack by the inputs that remain.

Shapes: M members that are cut, R rows, K inputs and O outputs of a layer, U units of a hidden
layer, all padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.errors import DataError, EditError
from dynopt_ray.population.stack import Population
from dynopt_ray.structure import RIDGE, Moments, best_ridges, keep_alike, masked_ridge_solve
from dynopt_ray.transfers import array_to_device, read_together


@dataclass(frozen=True, eq=False)
class StackedCut:
    """What members lose.

    Attributes:
        members: the members.
        places: the same on the device.
        stays: hidden layer -> bool (M, U), True for the units that remain. Layers that lose no
            unit in any member may be left out.
        keeps: layer -> bool (M, O, K), the new masks of its weights.
    """

    members: IntArray
    places: Tensor
    stays: Mapping[int, Tensor] = field(default_factory=dict)
    keeps: Mapping[int, Tensor] = field(default_factory=dict)


def refit(population: Population, cut: StackedCut, x_RI: Tensor) -> None:
    """Refit the layers that lose inputs or weights, so that they keep their old outputs.

    Args:
        population: the weights and biases of these layers change. Units that the members lose are
            still there, but nothing reads them any more.
        cut: what the members lose.
        x_RI: inputs to refit on; (P, R, I) if each member of the population has its own.

    Raises:
        EditError: inputs or weights of a layer are not finite, or too large to be squared.
    """
    run = _Refit(population, cut, waits=population.device.type == "cpu")
    found = run.run(x_RI)
    if run.successes:  # nothing was read before, so that the host waits for a GPU once
        (success,) = read_together([torch.stack(run.successes).all()])
        if not bool(success):
            found = _Refit(population, cut, waits=True).run(x_RI)
    for layer, (weight, bias) in found.items():
        population.weights[layer][cut.places] = weight
        population.biases[layer][cut.places] = bias


class _Refit:
    """The refit of all layers, from the first to the last.

    Attributes:
        successes: bool tensors, whether what was found is right; empty if the host waits.
    """

    def __init__(self, population: Population, cut: StackedCut, *, waits: bool) -> None:
        self._population, self._cut, self._waits = population, cut, waits
        self.successes: list[Tensor] = []

    def run(self, x_RI: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the new weights and biases of each layer that loses inputs or weights."""
        population, cut = self._population, self._cut
        lossy = {layer + 1 for layer in cut.stays} | set(cut.keeps)
        own = x_RI[cut.places] if x_RI.ndim == 3 else x_RI
        before = after = own.expand(len(cut.places), -1, -1)
        found = {}
        with torch.no_grad():
            for layer in range(max(lossy) + 1):
                weight = population.weights[layer][cut.places]
                bias = population.biases[layer][cut.places]
                wanted = torch.baddbmm(bias[:, None], before, weight.transpose(1, 2))
                if layer in lossy:
                    weight, bias = found[layer] = self._refitted(layer, weight, bias, after, wanted)
                given = torch.baddbmm(bias[:, None], after, weight.transpose(1, 2))
                before, after = wanted.relu_(), given.relu_()
        return found

    def _refitted(
        self, layer: int, weight_MOK: Tensor, bias_MO: Tensor, x_MRK: Tensor, wanted_MRO: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept_MOK, loses_M = self._kept(layer)
        cut_MOK = weight_MOK * kept_MOK
        given_MRO = torch.baddbmm(bias_MO[:, None], x_MRK, cut_MOK.transpose(1, 2))
        lack_MRO = wanted_MRO - given_MRO
        stays = self._cut.stays.get(layer)
        if stays is not None:  # the outputs of units that leave need not be right
            lack_MRO = lack_MRO * stays[:, None]
        finite_M = (x_MRK.isfinite().flatten(1).all(1)) & lack_MRO.isfinite().flatten(1).all(1)
        if self._waits:
            self._check(layer, finite_M)
        else:
            self.successes.append(finite_M.all())
        try:
            slope_MOK, shift_MO = _Regression(x_MRK, lack_MRO, kept_MOK).solved(
                None if self._waits else self.successes
            )
        except DataError as error:
            raise EditError(f"layer {layer} cannot be refitted: {error}") from error
        new_MOK = (cut_MOK.double() + slope_MOK).to(weight_MOK.dtype)
        new_MO = (bias_MO.double() + shift_MO).to(bias_MO.dtype)
        return (
            torch.where(loses_M[:, None, None], new_MOK, weight_MOK),
            torch.where(loses_M[:, None], new_MO, bias_MO),
        )

    def _kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return which weights may be non-zero, (M, O, K), and which members lose some, (M,)."""
        population, cut = self._population, self._cut
        inside_MK = self._inside(layer)[1]
        reads_MK = cut.stays.get(layer - 1, inside_MK)
        kept_MOK = reads_MK[:, None].expand(-1, population.weights[layer].shape[1], -1)
        loses_M = (inside_MK & ~reads_MK).any(1)
        old = population.masks[layer]
        old_MOK = None if old is None else old[cut.places]
        new_MOK = cut.keeps.get(layer, old_MOK)
        if new_MOK is None:
            return kept_MOK, loses_M
        lost_MOK = ~new_MOK if old_MOK is None else old_MOK & ~new_MOK
        loses_M = loses_M | lost_MOK.flatten(1).any(1)
        # Outputs that leave or are padding are given the mask of one that stays: a problem of which
        # all outputs keep the same inputs is solved as one.
        stays_MO = cut.stays.get(layer, self._inside(layer)[0])
        first_M11 = stays_MO.to(torch.int8).argmax(1)[:, None, None]
        like_M1K = new_MOK.gather(1, first_M11.expand(-1, 1, new_MOK.shape[2]))
        return kept_MOK & torch.where(stays_MO[:, :, None], new_MOK, like_M1K), loses_M

    def _inside(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return which outputs (M, O) and inputs (M, K) of a layer are not padding."""
        shape = self._population.weights[layer].shape[1:]
        sizes = self._population.sizes(layer)
        device = self._cut.places.device
        outputs, inputs = (
            torch.arange(most, device=device) < array_to_device(size, device)[:, None]
            for most, size in zip(shape, (size[self._cut.members] for size in sizes), strict=True)
        )
        return outputs, inputs

    def _check(self, layer: int, finite_M: Tensor) -> None:
        for member, finite in zip(self._cut.members, finite_M.tolist(), strict=True):
            if not finite:
                raise EditError(
                    f"layer {layer} of member {member} cannot be refitted: its inputs or weights "
                    "are not finite on these rows"
                )


class _Regression:
    """The regressions of all members, on two halves of the rows."""

    def __init__(self, x_MRK: Tensor, lack_MRO: Tensor, kept_MOK: Tensor) -> None:
        self._kept_MOK = kept_MOK
        empty = [Moments.start(x_MRK, num_outputs=lack_MRO.shape[2]) for _ in range(2)]
        for half, moments in enumerate(empty):
            moments.add(x_MRK[:, half::2], lack_MRO[:, half::2])
        self._one, self._other = empty

    def solved(self, successes: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return coefficients (M, O, K) and constants (M, O), float64.

        Args:
            successes: see `ridge_solve`.
        """
        kept_MOK = self._kept_MOK
        alike_M = keep_alike(kept_MOK)
        searched_MOK = kept_MOK & alike_M[:, None, None]

        def loss(ridges: Tensor) -> Tensor:
            return self._other.losses(*self._fit(self._one, searched_MOK, ridges, successes))

        device = kept_MOK.device
        ridges: Tensor = torch.full((len(kept_MOK),), RIDGE, dtype=torch.float64, device=device)
        if self._one.count and self._other.count:
            found = best_ridges(loss, len(kept_MOK), device=device)
            ridges = torch.where(alike_M, found, ridges)
        return self._fit(self._one.plus(self._other), kept_MOK, ridges, successes)

    def _fit(
        self,
        moments: Moments,
        kept_MOK: Tensor,
        ridges: Tensor,
        successes: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        cross, second = moments.centred(intercept=True)
        slope_MOK = masked_ridge_solve(cross, second, kept_MOK, ridge=ridges, solved=successes)
        mean_MO = moments.residual_GO / moments.count
        return slope_MOK, mean_MO - (slope_MOK @ moments.mean[:, :, None])[..., 0]
