"""Compensation: refitting layers that lost inputs or weights, so that they keep their old outputs.

A consumer (a linear layer, a convolution or another product with a weight) computes y = W x + b in
the original network. In the cut network it reads only the inputs that remain, or some of its
weights are masked. Its inputs x' have changed a little as well, because layers before it were cut,
too. But removed inputs can largely be predicted from the remaining ones, so other weights on the
remaining inputs can nearly reproduce y. They are found by ridge regression:

    W', b' = argmin E|y - W' x' - b'|² + ridge |W' - W_K|²

W_K is the part of W that remains, and W' is zero wherever a mask holds it at zero. The regression
is solved for the correction W' - W_K, which has to explain the residual: y minus the output of the
consumer in the cut network. Small corrections are preferred, so inputs that hardly vary on these
batches do not get arbitrary weights.

Consumers are refitted in forward order, in large networks several at a time. Each is fitted to its
outputs in the original network, on the inputs that it gets after the consumers before it were
refitted. So it also corrects the errors that those leave.

The constant b' needs a place that serves only this weight: its bias, or else the running mean of
the BatchNorm that follows. Without one, the regression has no intercept. The ridge is chosen by
fitting on every second row and judging on the others; the final fit uses all rows. All of this
needs only means and second moments, summed over batches, so memory does not depend on the number of
batches.

References:
    He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section
    3.2 ("whole model pruning"); here in closed form, with an intercept, and drawn towards W_K.
    Frantar, Alistarh 2022, "Optimal Brain Compression", which solves the same problem for each row
    of a masked weight; here it is solved exactly, after the mask has been chosen.
"""

import copy
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure.refit.observers import ROWS_PER_INPUT, ObservedOutputs, Observer, Use
from dynopt_ray.structure.refit.regression import RIDGE, Moments, best_ridges
from dynopt_ray.structure.tracing import Inputs, Reader, as_products, buffers_kept, undisturbed
from dynopt_ray.structure.units import Attribute, Axis, Change, Consumer, attributes_changed

_MOST_STAGES = 16
# Bytes of outputs of the original network that are kept at one time.
_MOST_BYTES = 2**28
_FEWEST_ROWS = 2**14

Halves = tuple[Moments, Moments]
"""The moments of every second row, and of the others. A fit on one half is judged on the other."""


@dataclass(frozen=True, eq=False)
class BeforeAndAfter:
    """A network before a change, and after the change but before refitting.

    Attributes:
        model: the network, in its old layout.
        old: its parameters and buffers by name.
        new: the same in the new layout.
        attributes: its integer attributes that follow the widths.
        changes: how its groups change.
        axes: tensor name -> dimension -> new layout, for the dimensions that change.
        masks: weight name -> bool tensor in the new layout; False is held at zero.
    """

    model: nn.Module
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    attributes: Sequence[Attribute]
    changes: Sequence[Change]
    axes: Mapping[str, Mapping[int, Axis]]
    masks: Mapping[str, Tensor]


def compensated(
    cut: BeforeAndAfter,
    consumers: Mapping[str, Sequence[Consumer]],
    lossy: Collection[str],
    batches: Sequence[Inputs],
) -> dict[str, Tensor]:
    """Return new values of all weights, biases and running means to refit, in the new layout.

    A network with many consumers is refitted in about 16 stages, each of several consumers. All
    consumers of a stage are fitted to the network that the previous stage left.

    Args:
        cut: the network before and after the change. It runs in evaluation mode and is not
            changed.
        consumers: the uses of each weight, in forward order.
        lossy: the weights that lose inputs or entries; those among the consumers are refitted.
        batches: inputs of the network.

    Raises:
        EditError: the network does not run on a batch, no batch reaches a consumer, or a
            consumer's inputs or outputs are not finite.
    """
    names = [name for name in consumers if name in lossy]
    tensors = dict(cut.new)
    refitted: dict[str, Tensor] = {}
    size = max(1, math.ceil(len(names) / _MOST_STAGES))
    for span in _spans(names, tensors):
        given = _given(cut, {name: consumers[name] for name in span}, batches)
        for start in range(0, len(span), size):
            stage = {name: consumers[name] for name in span[start : start + size]}
            for name, (reader, halves) in _collected(cut, tensors, stage, batches, given).items():
                sink = _sink(name, consumers)
                keep = cut.masks.get(name)
                changed = _refit(name, tensors, stage[name], sink, reader, halves, keep)
                tensors.update(changed)
                refitted.update(changed)
    return refitted


def _spans(names: Sequence[str], weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Group consecutive weights whose outputs in the original network are kept at one time."""
    spans: list[list[str]] = []
    room = 0
    for name in names:
        # An estimate, as about ROWS_PER_INPUT rows are kept per input.
        size = ROWS_PER_INPUT * weights[name].nbytes
        if size > room:
            spans.append([])
            room = _MOST_BYTES
        spans[-1].append(name)
        room -= size
    return spans


def reading_removed(changes: Sequence[Change]) -> set[str]:
    """Return the parameters that read removed units."""
    return {
        s.parameter
        for change in changes
        if len(change.keep) < change.group.width
        for s in change.group.slices
        if s.role == "in"
    }


def _given(
    cut: BeforeAndAfter, uses: Mapping[str, Sequence[Consumer]], batches: Sequence[Inputs]
) -> list[dict[Use, ObservedOutputs]]:
    """Return some weights' outputs in the original network by batch, until there are enough."""
    given: list[dict[Use, ObservedOutputs]] = []
    counts: Counter[str] = Counter()
    for number, batch in enumerate(batches):
        observer = Observer(cut.old, uses, number, len(batches), outputs_only=True)
        with undisturbed(cut.model, training=False), buffers_kept(cut.model, cut.old):
            _run(observer, cut.model, batch, number)
        given.append(observer.given)
        enough = set()
        for (name, _), one in observer.given.items():
            counts[name] += len(one.rows)
            if counts[name] >= max(_FEWEST_ROWS, ROWS_PER_INPUT * one.num_inputs):
                enough.add(name)
        uses = {name: use for name, use in uses.items() if name not in enough}
        if not uses:
            break
    return given


def _run(observer: Observer, model: nn.Module, batch: Inputs, number: int) -> None:
    try:
        observer.run(model, batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise EditError(
            f"compensate: the network does not run on batch {number}: {error}. Pass a list of "
            "batches, each of them the input of one forward pass"
        ) from error


def _collected(
    cut: BeforeAndAfter,
    tensors: Mapping[str, Tensor],
    stage: Mapping[str, Sequence[Consumer]],
    batches: Sequence[Inputs],
    given: Sequence[Mapping[Use, ObservedOutputs]],
) -> dict[str, tuple[Reader, Halves]]:
    """Return the moments of some weights' inputs in the cut network, and of the residuals."""
    added = {change.group.name: change.added for change in cut.changes}
    collected: dict[str, tuple[Reader, Halves]] = {}
    incomparable: set[str] = set()
    for number, (batch, before) in enumerate(zip(batches, given, strict=False)):
        uses = {name: stage[name] for name in stage if any(name == use[0] for use in before)}
        if not uses:
            continue
        after = Observer(tensors, uses, number, len(batches), like=before)
        with (
            undisturbed(cut.model, training=False),
            buffers_kept(cut.model, tensors),
            attributes_changed(cut.model, cut.attributes, added),
        ):
            _run(after, cut.model, batch, number)
        for use, seen in after.seen.items():
            name = use[0]
            if before[use].num_rows != seen.reader.num_rows:
                # Units were removed along its rows, so old and new rows do not correspond.
                incomparable.add(name)
                continue
            wanted, got = before[use].outputs, after.given[use].outputs
            residual = _residual(wanted, got, seen.reader.made, cut.axes.get(name, {}))
            if not residual.numel():  # no rows, e.g. an expert that these samples do not reach
                continue
            r_GRO = residual.reshape(len(residual), len(seen.inputs_GRK), -1).transpose(0, 1)
            if not (seen.inputs_GRK.isfinite().all() and r_GRO.isfinite().all()):
                raise EditError(
                    f"compensate: inputs or outputs of {name!r} are not finite on these batches"
                )
            if name not in collected:
                start = Moments.start(seen.inputs_GRK, r_GRO.shape[2])
                collected[name] = (seen.reader, (start, copy.deepcopy(start)))
            for half, moments in enumerate(collected[name][1]):
                moments.add(seen.inputs_GRK[:, half::2], r_GRO[:, half::2])
    for name in stage.keys() - collected.keys() - incomparable:
        raise EditError(
            f"compensate: the batches never reach {name!r}, so it cannot be refitted. Pass "
            "batches that use it, or compensate=None"
        )
    return {name: collected[name] for name in stage if name in collected}


def _residual(
    wanted: Tensor, given: Tensor, made: Sequence[int | None], axes: Mapping[int, Axis]
) -> Tensor:
    """Return what the refitted weight has to add to its outputs; 0 for outputs of fresh units."""
    fresh = given.new_zeros((), dtype=torch.bool)
    for dim, weight_dim in enumerate(made, start=1):
        if weight_dim is not None and weight_dim in axes:
            index = axes[weight_dim].index.to(wanted.device)
            wanted = wanted.index_select(dim, index.clamp(min=0))
            fresh = fresh | (index < 0).reshape([-1 if d == dim else 1 for d in range(wanted.ndim)])
    return (wanted - given).masked_fill(fresh, 0)


def _sink(name: str, consumers: Mapping[str, Sequence[Consumer]]) -> str | None:
    """Return the name of the bias or running mean that can take up this weight's constant.

    None if there is no such tensor, or if other weights use it, too.
    """
    sinks = {use.bias or use.mean for use in consumers[name]}
    others = [use for n, uses in consumers.items() if n != name for use in uses]
    taken = {place for use in others for place in (use.bias, use.mean)}
    return next(iter(sinks)) if len(sinks) == 1 and sinks.isdisjoint(taken) else None


def _refit(
    name: str,
    tensors: Mapping[str, Tensor],
    uses: Sequence[Consumer],
    sink: str | None,
    reader: Reader,
    halves: Halves,
    keep: Tensor | None,
) -> dict[str, Tensor]:
    """Return the refitted weight and the tensor that takes up its constant, if there is one."""
    one, other = halves
    kept_GOK = None if keep is None else as_products(keep, reader, len(one.cross_GOK))
    if sink is not None and tensors[sink].numel() != one.residual_GO.numel():
        sink = None  # several groups share its entries
    intercept = sink is not None

    def loss(ridges: Tensor) -> Tensor:
        fit = one.fit(intercept=intercept, ridge=ridges.item(), kept_GOK=kept_GOK)
        return torch.tensor([other.loss(*fit)], dtype=torch.float64, device="cpu")

    ridge = best_ridges(loss, 1).item() if one.count and other.count else RIDGE
    both = one.plus(other)
    slope_GOK, constant_GO = both.fit(intercept=intercept, ridge=ridge, kept_GOK=kept_GOK)
    weight = tensors[name]
    result = {name: (weight.double() + reader.in_layout(slope_GOK)).to(weight.dtype)}
    if sink is not None:
        sign = 1 if sink == uses[0].bias else -1
        old = tensors[sink]
        result[sink] = (old.double() + sign * constant_GO.flatten()).to(old.dtype)
    return result
