"""The corrections of one weight: sums over its uses and batches, and the regression on them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dynopt_ray.errors import DataError, EditError
from dynopt_ray.structure.refit.masked_regression import keep_alike
from dynopt_ray.structure.refit.moments import Moments
from dynopt_ray.structure.refit.regression import RIDGE, best_ridges
from dynopt_ray.structure.tracing import Reader, as_products
from dynopt_ray.structure.units import Axis, Consumer
from dynopt_ray.transfers import read_numbers, to_device

Halves = tuple[Moments, Moments]
"""The moments of every second row, and of the others. A fit on one half is judged on the other."""


@dataclass(frozen=True, eq=False)
class ResidualRows:
    """Some rows of one use of a weight in the cut network.

    Attributes:
        reader: how the weight reads its inputs.
        inputs_GRK: the inputs.
        residual_GRO: what the outputs lack, compared with the original network.
    """

    reader: Reader
    inputs_GRK: Tensor
    residual_GRO: Tensor


class Correction:
    """A weight that is refitted, and what is known so far about its inputs and outputs.

    Args:
        name: name of the weight.
        sink: name of the bias or running mean that takes up its constant, or None.
        adds: whether the constant is added to the sink; it is subtracted from a running mean.
        keep: bool tensor of the weight's shape, False is held at zero; None without a mask.
        start: the weight and the sink before refitting, by name.

    Attributes:
        name, sink, start: as above. `sink` becomes None if it turns out not to fit.
    """

    def __init__(
        self,
        name: str,
        sink: str | None,
        adds: bool,
        keep: Tensor | None,
        start: Mapping[str, Tensor],
    ) -> None:
        self.name, self.sink, self.start = name, sink, start
        self._adds, self._keep = adds, keep
        self._reader: Reader | None = None
        self._empty: Moments | None = None
        # The moments of the first use, and of later ones.
        self._parts: dict[bool, Halves] = {}
        # Whether the rows of each batch are finite. `values` reads it, once for all batches.
        self._finite: list[Tensor] = []

    @property
    def has_rows(self) -> bool:
        """Whether there are rows to fit to."""
        return bool(self._parts)

    def add(self, rows: ResidualRows, *, later: bool) -> None:
        """Take rows into account.

        Args:
            rows: rows of one use.
            later: whether it is not the first use in a pass.
        """
        x_GRK, r_GRO = rows.inputs_GRK, rows.residual_GRO
        self._finite.append(x_GRK.isfinite().all() & r_GRO.isfinite().all())
        if self._empty is None:
            self._reader, self._empty = rows.reader, Moments.start(x_GRK, r_GRO.shape[2])
            num_constants = self._empty.residual_GO.numel()
            if self.sink is not None and self.start[self.sink].numel() != num_constants:
                self.sink = None  # several groups share its entries
        if later not in self._parts:
            self._parts[later] = copy.deepcopy(self._empty), copy.deepcopy(self._empty)
        for half, moments in enumerate(self._parts[later]):
            moments.add(x_GRK[:, half::2], r_GRO[:, half::2])

    def forget_first_use(self) -> None:
        """Forget the rows of the first use."""
        self._parts.pop(False, None)

    def values(self) -> dict[str, Tensor]:
        """Return the refitted weight, and the tensor that takes up its constant if there is one.

        Raises:
            EditError: inputs or residuals are not finite, or too large to be squared.
        """
        finite = read_numbers(self._finite)
        self._finite.clear()
        if not all(finite):
            raise EditError(
                f"compensate: inputs or outputs of {self.name!r} are not finite on these batches"
            )
        try:
            return self._fitted()
        except DataError as error:
            raise EditError(f"compensate: {self.name!r} cannot be refitted: {error}") from error

    def _fitted(self) -> dict[str, Tensor]:
        assert self._reader is not None
        reader, (one, other), intercept = self._reader, self._halves(), self.sink is not None
        keep, num_groups = self._keep, len(one.cross_GOK)
        kept_GOK = None if keep is None else as_products(keep, reader, num_groups)

        def loss(ridges: Tensor) -> Tensor:
            fit = partial(one.fit, intercept=intercept, ridge=ridges.item(), kept_GOK=kept_GOK)
            solved: list[Tensor] = []
            found = other.losses(*fit(solved=solved)).sum()
            figure, *successes = read_numbers([found, *solved])
            if not all(successes):
                (figure,) = read_numbers([other.losses(*fit()).sum()])
            return torch.tensor([figure], dtype=torch.float64, device="cpu")

        searches = bool(one.count and other.count)
        if kept_GOK is not None:
            searches = searches and all(read_numbers([keep_alike(kept_GOK).all()]))
        ridge = best_ridges(loss, 1).item() if searches else RIDGE
        both = one.plus(other)
        slope_GOK, constant_GO = both.fit(intercept=intercept, ridge=ridge, kept_GOK=kept_GOK)
        weight = self.start[self.name]
        result = {self.name: (weight.double() + reader.in_layout(slope_GOK)).to(weight.dtype)}
        if self.sink is not None:
            constant, old = constant_GO.flatten(), self.start[self.sink]
            shifted = old.double() + (constant if self._adds else -constant)
            result[self.sink] = shifted.to(old.dtype)
        return result

    def _halves(self) -> Halves:
        """Return the moments of both parts."""
        parts = [*self._parts.values()]
        if len(parts) == 1:
            return parts[0]
        (one, other), (later_one, later_other) = parts
        return one.plus(later_one), other.plus(later_other)


def residual(
    wanted: Tensor, given: Tensor, made: Sequence[int | None], axes: Mapping[int, Axis]
) -> Tensor:
    """Return what a refitted weight has to add to its outputs; 0 for outputs of fresh units.

    Args:
        wanted: rows of outputs in the original network.
        given: the same rows in the cut network.
        made: see `Reader`.
        axes: dimension of the weight -> its new layout, for dimensions that change.
    """
    fresh = given.new_zeros((), dtype=torch.bool)
    for dim, weight_dim in enumerate(made, start=1):
        if weight_dim is not None and weight_dim in axes:
            index = to_device(axes[weight_dim].index, wanted.device)
            wanted = wanted.index_select(dim, index.clamp(min=0))
            fresh = fresh | (index < 0).reshape([-1 if d == dim else 1 for d in range(wanted.ndim)])
    return (wanted - given).masked_fill(fresh, 0)


def sink_of(name: str, consumers: Mapping[str, Sequence[Consumer]]) -> str | None:
    """Return the name of the bias or running mean that can take up a weight's constant.

    None if there is no such tensor, or if other weights use it, too.
    """
    sinks = {use.bias or use.mean for use in consumers[name]}
    others = [use for n, uses in consumers.items() if n != name for use in uses]
    taken = {place for use in others for place in (use.bias, use.mean)}
    return next(iter(sinks)) if len(sinks) == 1 and sinks.isdisjoint(taken) else None
