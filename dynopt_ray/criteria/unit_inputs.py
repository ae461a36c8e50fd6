"""Observe, on data, the inputs of the layers that read a group's units.

Shapes: G groups of a convolution (or heads), R rows, K inputs and O outputs, as for
`structure.Reader`; U units, each with M × Q inputs: Q inputs in each of M groups.
"""

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dynopt_ray.criteria.base import Evidence, Loss
from dynopt_ray.criteria.gradients import Batch, checked_batches
from dynopt_ray.errors import CriterionError, MissingGradientError
from dynopt_ray.structure import (
    Graph,
    ObservedInputs,
    Observer,
    Reader,
    Slice,
    Use,
    WidthGroup,
    as_products,
    buffers_kept,
    named_tensors,
    undisturbed,
)
from dynopt_ray.transfers import read_together, to_device

_ROWS_PER_SAMPLE = 8
# Steps of the additive recurrence that fills a square most evenly: 1/p and 1/p², with p the
# plastic number.
_SAMPLE_STEP, _ROW_STEP = 0.7548776662466927, 0.5698402909980532


@dataclass(frozen=True, eq=False)
class UnitInputs:
    """How one weight reads the units of one group.

    Attributes:
        weight_GOK: the weight as the coefficients of G independent products.
        groups_UM: for each unit, the groups of the weight that read it.
        inputs_UMQ: for each unit and each of these groups, the inputs that belong to the unit.
    """

    weight_GOK: Tensor
    groups_UM: Tensor
    inputs_UMQ: Tensor

    def of_units(self, x_GRK: Tensor) -> Tensor:
        """The inputs that belong to each unit, (U, M, R, Q)."""
        by_input = x_GRK.transpose(1, 2)  # (G, K, R)
        return by_input[self.groups_UM[:, :, None], self.inputs_UMQ].transpose(2, 3)

    def weights_of_units(self) -> Tensor:
        """The weights that multiply the inputs of each unit, (U, M, O, Q)."""
        by_input = self.weight_GOK.transpose(1, 2)
        return by_input[self.groups_UM[:, :, None], self.inputs_UMQ].transpose(2, 3)


def reading(weight: Tensor, reader: Reader, s: Slice, num_groups: int) -> UnitInputs:
    """Return how a weight reads the units of a slice.

    Args:
        weight: the parameter.
        reader: one use of the weight.
        s: a slice of the weight, of role "in".
        num_groups: G.
    """
    num_inputs = reader.num_inputs
    weight_GOK = as_products(weight, reader, num_groups)
    num_outputs = weight_GOK.shape[1]
    numbers = torch.arange(weight.numel(), device=weight.device)
    place = reader.in_layout(numbers.reshape(weight_GOK.shape))
    # Encode the group and the input of each entry as one number.
    inputs = place // (num_outputs * num_inputs) * num_inputs + place % num_inputs
    along = inputs.movedim(s.dim, 0)[to_device(s.positions, inputs.device)]
    of_units = along.reshape(len(s.positions), -1).sort(dim=1).values
    first = torch.ones_like(of_units, dtype=torch.bool)
    first[:, 1:] = of_units[:, 1:] != of_units[:, :-1]
    # All units are alike, so the first one tells how many inputs and groups each has.
    read_groups = of_units[0] // num_inputs
    counts = first[0].sum(), (read_groups[1:] != read_groups[:-1]).sum() + 1
    num_each, num_read = (int(count) for count in read_together(counts))
    places = (~first).to(torch.int8).argsort(dim=1, stable=True)[:, :num_each]
    of_units = of_units.gather(1, places).reshape(len(of_units), num_read, -1)
    return UnitInputs(
        weight_GOK,
        of_units[:, :, 0] // num_inputs,
        of_units % num_inputs,
    )


def readers_of(graph: Graph, group: WidthGroup) -> list[Slice]:
    """The slices through which observable weights read a group.

    Raises:
        CriterionError: there are none, for example because only an LSTM reads the group.
    """
    found = [s for s in group.slices if s.role == "in" and s.parameter in graph.consumers]
    if not found:
        raise CriterionError(
            f"group {group.name!r} is read by no linear layer, convolution or product with a "
            "parameter, so there are no activations to score it by. Use another criterion, or fix "
            "the group: trace(…, fixed=…)"
        )
    return found


@dataclass(frozen=True, eq=False)
class Observed:
    """One use of a weight, observed on one batch.

    Attributes:
        seen: some rows of its inputs.
        places: the number of places of a sample at which the weight is applied.
        slopes_RGO: the gradient of each sample's loss with respect to the outputs in these rows;
            None if no loss was given.
    """

    seen: ObservedInputs
    places: float
    slopes_RGO: Tensor | None


def group_readers(graph: Graph) -> set[str]:
    """The weights that read the units of any group; raises the errors of `readers_of`."""
    return {s.parameter for group in graph for s in readers_of(graph, group)}


def weight_readers(evidence: Evidence) -> set[str]:
    """The weights to score, after a check that each can be observed.

    Raises:
        CriterionError: a weight cannot be observed.
    """
    for name in evidence.weights:
        if name not in evidence.graph.consumers:
            raise CriterionError(
                f"parameter {name!r} belongs to no linear layer, convolution or product, so there "
                "are no activations to score its weights by. Use another criterion"
            )
    return set(evidence.weights)


def observed(
    graph: Graph, names: Collection[str], batches: Iterable[Batch], loss: Loss | None = None
) -> Iterator[dict[Use, Observed]]:
    """Yield rows of the inputs of some weights and, given a loss, its gradients, batch by batch.

    If a layer is applied at more than 8 places of a sample, 8 of them are kept. Which ones
    depends on the number of the sample, not on its batch.

    Raises:
        MissingGradientError: no batch has samples, or the network does not use a weight, or the
            loss does not depend on a weight's output.
        DivergedError: an input is not finite.
    """
    uses = {name: graph.consumers[name] for name in graph.consumers if name in names}
    tensors = {name: t.detach() for name, t in named_tensors(graph.model).items()}
    start = 0
    for inputs, targets in checked_batches(batches):
        choose = partial(_rows, start, len(targets))
        leaves = {n: t.requires_grad_(loss is not None and n in uses) for n, t in tensors.items()}
        observer = Observer(leaves, uses, choose, to_the_end=loss is not None)
        kept = buffers_kept(graph.model, leaves)
        gradients = torch.set_grad_enabled(loss is not None)
        with undisturbed(graph.model, training=False), kept, gradients:
            output = observer.run(graph.model, inputs)
            slopes: Sequence[Tensor | None] = [None] * len(observer.seen)
            if loss is not None:
                total = loss(output, targets) * len(targets)
                slopes = torch.autograd.grad(total, list(observer.live.values()), allow_unused=True)
                for (name, _), slope in zip(observer.live, slopes, strict=True):
                    if slope is None:
                        raise MissingGradientError(
                            f"the loss does not depend on the output of {name!r}, which thus has "
                            "no gradient. Use a criterion without gradients ('magnitude')"
                        )
        if missing := uses.keys() - {name for name, _ in observer.seen}:
            raise MissingGradientError(
                f"the network does not use {sorted(missing)} on these batches, so there are no "
                "inputs to score them by"
            )
        start += len(targets)
        yield {
            use: Observed(
                seen,
                seen.reader.num_rows / len(targets),
                None
                if slope is None
                else seen.reader.outputs(slope, seen.rows).reshape(
                    len(seen.rows), len(seen.inputs_GRK), -1
                ),
            )
            for (use, seen), slope in zip(observer.seen.items(), slopes, strict=True)
        }


def _rows(start: int, num_samples: int, use: Use, reader: Reader, _: int) -> Tensor:
    per_sample = reader.num_rows // num_samples
    if per_sample <= _ROWS_PER_SAMPLE or reader.num_rows % num_samples:
        return torch.arange(reader.num_rows, device="cpu")
    samples = torch.arange(num_samples, dtype=torch.float64, device="cpu")[:, None]
    steps = torch.arange(_ROWS_PER_SAMPLE, device="cpu") * _ROW_STEP
    offset = zlib.crc32(str(use).encode()) / 2**32
    place = offset + (start + samples) * _SAMPLE_STEP + steps
    rows = (place.frac() * per_sample).long() + samples.long() * per_sample
    return rows.flatten()
