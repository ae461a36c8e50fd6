"""Refitting what reads removed units, so that it gives what it gave before.

Each consumer (a linear layer or a convolution) gave y = W x + b. In the cut network it reads only
the inputs that stay, and those have changed a little too, because layers before it were cut as
well. So the consumers are refitted in forward order, each on the inputs it gets in the cut network
as far as that is refitted already, and each towards what it gave in the original one:

    W', b' = argmin E|y - W' x' - b'|² + ridge |W' - W_K|²

with W_K the columns of W that stay. The regression needs only means and second moments, summed up
over batches, so memory does not depend on how many there are.

References:
    He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section
    3.2 ("whole model pruning"); here in closed form, with an intercept, and drawn towards W_K.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynopt_ray.errors import EditError
from dynopt_ray.structure.attributes import Attribute, attributes_changed
from dynopt_ray.structure.forward import Inputs, call, undisturbed
from dynopt_ray.structure.layout import Axis, Change
from dynopt_ray.structure.record import Consumer
from dynopt_ray.structure.regression import Moments

_ROWS_PER_SAMPLE = 16
_ROWS_PER_INPUT = 10
_MOST_STAGES = 16


@dataclass(frozen=True, eq=False)
class Cut:
    """A network before a change, and after it but before refitting.

    Attributes:
        model: the network, in its old layout.
        old: its parameters and buffers by name.
        new: the same in the new layout.
        attributes: its integer attributes that follow the widths.
        changes: how its groups change.
        outputs: weight name -> the new layout of dimension 0, where it changes.
    """

    model: nn.Module
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    attributes: Sequence[Attribute]
    changes: Sequence[Change]
    outputs: Mapping[str, Axis]


def compensated(
    cut: Cut, consumers: Mapping[str, Sequence[Consumer]], batches: Sequence[Inputs]
) -> dict[str, Tensor]:
    """New values of all weights, biases and running means to refit, in the new layout.

    A network with very many consumers is refitted in 16 stages; those of one stage see the
    network as the stage before left it.

    Args:
        cut: the network, which runs in evaluation mode and is not changed.
        consumers: the uses of each weight, in forward order.
        batches: what the network is called with.

    Raises:
        EditError: a consumer is never reached, or gets inputs that are not finite.
    """
    names = _reading_removed(consumers, cut.changes)
    tensors = dict(cut.new)
    refitted: dict[str, Tensor] = {}
    size = max(1, math.ceil(len(names) / _MOST_STAGES))
    for start in range(0, len(names), size):
        stage = {name: consumers[name] for name in names[start : start + size]}
        for name, moments in _collected(cut, tensors, stage, batches).items():
            changed = _refit(name, tensors, stage[name], moments)
            tensors.update(changed)
            refitted.update(changed)
    return refitted


def _reading_removed(
    consumers: Mapping[str, Sequence[Consumer]], changes: Sequence[Change]
) -> list[str]:
    """The weights that read units which go, in forward order."""
    reading = {
        s.parameter
        for change in changes
        if len(change.keep) < change.group.width
        for s in change.group.slices
        if s.role == "in" and s.dim == 1
    }
    return [name for name in consumers if name in reading]


def _collected(
    cut: Cut,
    tensors: Mapping[str, Tensor],
    stage: Mapping[str, Sequence[Consumer]],
    batches: Sequence[Inputs],
) -> dict[str, Moments]:
    """The moments of some weights' inputs in the cut network, and of what they fail to give."""
    added = {change.group.name: change.added for change in cut.changes}
    collected: dict[str, Moments] = {}
    for number, batch in enumerate(batches):
        before = _Watch(cut.old, stage, number, len(batches))
        after = _Watch(tensors, stage, number, len(batches))
        with undisturbed(cut.model, training=False):
            before.run(cut.model, batch)
            with attributes_changed(cut.model, cut.attributes, added):
                after.run(cut.model, batch)
        for key, seen in after.seen.items():
            name, groups = key[0], stage[key[0]][0].groups
            residual = _residual(before.seen[key].outputs, seen.outputs, cut.outputs.get(name))
            r_GRO = residual.reshape(len(residual), groups, -1).transpose(0, 1)
            if not (seen.inputs.isfinite().all() and r_GRO.isfinite().all()):
                raise EditError(f"compensate: what {name!r} reads is not finite on these batches")
            if name not in collected:
                collected[name] = Moments.start(seen.inputs, r_GRO.shape[2])
            collected[name].add(seen.inputs, r_GRO)
    for name in stage.keys() - collected.keys():
        raise EditError(
            f"compensate: the batches never reach {name!r}, so it cannot be refitted. Pass "
            "batches that use it, or compensate=None"
        )
    return {name: collected[name] for name in stage}


def _residual(wanted_RO: Tensor, given_RO: Tensor, axis: Axis | None) -> Tensor:
    """What the refitted weight has to add; outputs of fresh units stay as they are."""
    if axis is None:
        return wanted_RO - given_RO
    index = axis.index.to(wanted_RO.device)
    residual = wanted_RO[:, index.clamp(min=0)] - given_RO
    return residual * (index >= 0)


def _refit(
    name: str, tensors: Mapping[str, Tensor], uses: Sequence[Consumer], moments: Moments
) -> dict[str, Tensor]:
    """One weight and what takes up its constant: its bias, else the BatchNorm's mean behind it."""
    sinks = {use.bias or use.mean for use in uses}
    sink = next(iter(sinks)) if len(sinks) == 1 else None
    slope_GOK, constant_GO = moments.fit(intercept=sink is not None)
    weight = tensors[name]
    result = {name: (weight.double() + slope_GOK.reshape(weight.shape)).to(weight.dtype)}
    if sink is not None:
        sign = 1 if sink == uses[0].bias else -1
        old = tensors[sink]
        result[sink] = (old.double() + sign * constant_GO.flatten()).to(old.dtype)
    return result


@dataclass(frozen=True, eq=False)
class _Seen:
    """Some rows of one use of a weight: inputs (groups, rows, in) and outputs (rows, out)."""

    inputs: Tensor
    outputs: Tensor


class _Reached(Exception):
    """Everything wanted has been seen: the rest of the pass need not run."""


class _Watch(TorchFunctionMode):
    """Runs a network with other tensors and keeps some rows of what some weights read and give.

    Args:
        tensors: the tensors to run with, by name.
        uses: the weights to watch, with their uses in one pass.
        number: of the batch; decides with the weight's name which rows are kept.
        num_batches: in all; the fewer, the more rows of each are kept.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        uses: Mapping[str, Sequence[Consumer]],
        number: int,
        num_batches: int,
    ) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], _Seen] = {}
        self._tensors = tensors
        self._names = {id(tensors[name]): name for name in uses}
        self._num_uses = sum(len(u) for u in uses.values())
        self._met: Counter[str] = Counter()
        self._seed = number
        self._num_batches = num_batches

    def run(self, model: nn.Module, batch: Inputs) -> None:
        """One forward pass, as far as it is needed."""
        try:
            with self:
                call(model, batch, self._tensors)
        except _Reached:
            pass

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; keep rows if its weight is one of those watched."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        names = _ARGUMENTS.get(func)
        if names is not None:
            called = dict(zip(names, args, strict=False)) | dict(kwargs)
            name = self._names.get(id(called["weight"]))
            if name is not None:
                self._keep(name, called, out)
                if len(self.seen) == self._num_uses:
                    raise _Reached
        return out

    def _keep(self, name: str, called: Mapping[str, Any], out: Tensor) -> None:
        key = (name, self._met[name])
        self._met[name] += 1
        weight, x = called["weight"], called["input"]
        is_linear = weight.ndim == 2
        rows = _flat(out if is_linear else out.movedim(1 - weight.ndim, -1))
        # Both networks have as many rows, so the same ones are chosen in both.
        chosen = self._chosen(key, len(rows), x.shape[0], math.prod(weight.shape[1:]))
        chosen = chosen.to(out.device)
        inputs = _flat(x)[chosen][None] if is_linear else _patches(called, chosen)
        self.seen[key] = _Seen(inputs, rows[chosen])

    def _chosen(
        self, key: tuple[str, int], num_rows: int, num_samples: int, num_inputs: int
    ) -> Tensor:
        """Which rows to keep: enough for the regression, and of all samples."""
        wanted = max(
            _ROWS_PER_SAMPLE * num_samples,
            math.ceil(_ROWS_PER_INPUT * num_inputs / self._num_batches),
        )
        if num_rows <= wanted:
            return torch.arange(num_rows)
        seed = zlib.crc32(f"{key} {self._seed}".encode())
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(num_rows, (wanted,), generator=generator)


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ARGUMENTS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    torch.conv1d: _CONVOLUTION,
    torch.conv2d: _CONVOLUTION,
    torch.conv3d: _CONVOLUTION,
}


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _patches(called: Mapping[str, Any], chosen: Tensor) -> Tensor:
    """The patches that a convolution reads for some rows, (groups, rows, in · kernel)."""
    weight, groups = called["weight"], called.get("groups", 1)
    space = weight.ndim - 2
    x = called["input"] if called["input"].ndim == weight.ndim else called["input"].unsqueeze(0)
    stride = _per_dim(called.get("stride", 1), space)
    dilation = _per_dim(called.get("dilation", 1), space)
    kernel = weight.shape[2:]
    x = F.pad(x, _padding(called.get("padding", 0), kernel, dilation))
    for d in range(space):
        x = x.unfold(2 + d, (kernel[d] - 1) * dilation[d] + 1, stride[d])
    for d, step in enumerate(dilation):
        x = x[(slice(None),) * (x.ndim - space + d) + (slice(None, None, step),)]
    # (batch, channels, *positions, *kernel) -> (batch, *positions, channels, *kernel)
    x = x.movedim(1, 1 + space)
    picked = x[torch.unravel_index(chosen, x.shape[: 1 + space])]
    return picked.reshape(len(chosen), groups, -1).transpose(0, 1)


def _per_dim(value: Any, num_dims: int) -> tuple[int, ...]:
    return (value,) * num_dims if isinstance(value, int) else tuple(value)


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As `F.pad` wants it: last dimension first, before and after."""
    amounts: list[int] = []
    for d in reversed(range(len(kernel))):
        if padding == "same":
            total = dilation[d] * (kernel[d] - 1)
            amounts += [total // 2, total - total // 2]
        else:
            amounts += [0 if padding == "valid" else _per_dim(padding, len(kernel))[d]] * 2
    return amounts
