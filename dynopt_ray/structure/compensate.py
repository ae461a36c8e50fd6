"""Refitting what reads removed units, so that it gives what it gave before.

Each consumer (a linear layer or a convolution) gave W x + b. Without the removed inputs x_R it can
still give nearly the same, because x_R is mostly predictable from the inputs x_K that stay:

    W'_K = W_K + W_R M,   M = argmin E|x_R - M x_K - c|² + ridge |M|²,   b' = b + W_R c.

The regression needs only means and second moments of the inputs, which are summed up over batches,
so memory does not depend on how many there are.

References:
    He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", step (ii);
    here in closed form, with intercept, for all consumers at once.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynopt_ray.errors import EditError
from dynopt_ray.structure.forward import Inputs, undisturbed
from dynopt_ray.structure.layout import Change
from dynopt_ray.structure.record import Consumer

_RIDGE = 1e-3
_ROWS_PER_INPUT = 4
_FEWEST_ROWS = 2048


@dataclass
class Moments:
    """Sums over rows x, for each group of a convolution.

    They are taken about a point near the mean: differences of large sums would lose the
    variance of inputs whose mean is far from zero.

    Attributes:
        origin: the point, (groups, inputs).
        count: number of rows.
        total: sum of x - origin.
        product: sum of (x - origin)(x - origin)ᵀ.
    """

    origin: Tensor
    count: int
    total: Tensor
    product: Tensor

    def add(self, rows_GRI: Tensor) -> None:
        """Add rows, in float32 each batch and in float64 over batches."""
        rows = rows_GRI.float() - self.origin[:, None]
        self.count += rows.shape[1]
        self.total += rows.sum(1)
        self.product += rows.transpose(1, 2) @ rows

    def second(self, about: Tensor) -> Tensor:
        """Mean of (x - about)(x - about)ᵀ."""
        shift = self.total / self.count
        offset = self.origin - about
        outer = shift[:, :, None] * offset[:, None]
        square = offset[:, :, None] * offset[:, None]
        return self.product / self.count + outer + outer.transpose(1, 2) + square

    @classmethod
    def start(cls, rows_GRI: Tensor) -> "Moments":
        """No rows yet; the origin is the mean of these."""
        groups, _, inputs = rows_GRI.shape
        zeros = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=rows_GRI.device)
        return cls(rows_GRI.float().mean(1), 0, zeros[0].new_zeros(groups, inputs), zeros)


def compensated(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    consumers: Mapping[str, Sequence[Consumer]],
    changes: Sequence[Change],
    batches: Iterable[Inputs] | Tensor,
) -> dict[str, Tensor]:
    """New values, in the old layout, of all weights, biases and running means to refit.

    Args:
        model: the network before the change; it runs in evaluation mode and is not changed.
        tensors: its parameters and buffers by name.
        consumers: the uses of each weight.
        changes: how its groups change.
        batches: what the network is called with, a few hundred to a few thousand samples.

    Raises:
        EditError: there are no batches, or they hold NaN or infinity.
    """
    removed = _removed_inputs(consumers, changes)
    if not removed:
        return {}
    moments = _collect(model, {name: tensors[name] for name in removed}, batches)
    refitted: dict[str, Tensor] = {}
    for name, gone in removed.items():
        if name not in moments:
            raise EditError(
                f"compensate: the batches never reach {name!r}, so it cannot be refitted. Pass "
                "batches that use it, or compensate=None."
            )
        refitted.update(_refit(name, tensors, consumers[name], gone, moments[name]))
    return refitted


def _removed_inputs(
    consumers: Mapping[str, Sequence[Consumer]], changes: Sequence[Change]
) -> dict[str, Tensor]:
    """Weight name -> coordinates of dimension 1 that go."""
    removed: dict[str, list[Tensor]] = {}
    for change in changes:
        gone = torch.ones(change.group.width, dtype=torch.bool)
        gone[change.keep] = False
        for s in change.group.slices if gone.any() else ():
            if s.role == "in" and s.dim == 1 and s.parameter in consumers:
                removed.setdefault(s.parameter, []).append(s.positions[gone].flatten())
    return {name: torch.cat(parts) for name, parts in removed.items()}


def _collect(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Inputs] | Tensor
) -> dict[str, Moments]:
    statistics = _Statistics(weights)
    with undisturbed(model, training=False):
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            with statistics:
                if isinstance(batch, dict):
                    model(**batch)
                else:
                    model(*batch) if isinstance(batch, tuple) else model(batch)
    for name, moments in statistics.moments.items():
        if not bool(moments.product.isfinite().all()):
            raise EditError(f"compensate: the inputs of {name!r} are not finite on these batches")
    return statistics.moments


class _Statistics(TorchFunctionMode):
    """Sums up the moments of what some weights read while a network runs."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self.moments: dict[str, Moments] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; before it, sum up its inputs if its weight is one of ours."""
        kwargs = kwargs or {}
        if func is F.linear or func in _CONVOLUTIONS:
            bound = dict(zip(_ARGUMENTS[func is F.linear], args, strict=False)) | dict(kwargs)
            name = self._names.get(id(bound["weight"]))
            if name is not None:
                rows = _linear_rows(bound) if func is F.linear else _patch_rows(bound)
                self._add(name, rows)
        return func(*args, **kwargs)

    def _add(self, name: str, rows_GRI: Tensor) -> None:
        if name not in self.moments:
            self.moments[name] = Moments.start(rows_GRI)
        self.moments[name].add(rows_GRI)


_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_ARGUMENTS = {
    True: ("input", "weight", "bias"),
    False: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}


def _linear_rows(call: Mapping[str, Any]) -> Tensor:
    """Inputs as (1, rows, in)."""
    x: Tensor = call["input"]
    return x.reshape(1, -1, x.shape[-1])


def _patch_rows(call: Mapping[str, Any]) -> Tensor:
    """Patches as (groups, rows, in · kernel); evenly spaced ones where there are very many."""
    weight, groups = call["weight"], call.get("groups", 1)
    space = weight.ndim - 2
    x = call["input"] if call["input"].ndim == weight.ndim else call["input"].unsqueeze(0)
    stride = _per_dim(call.get("stride", 1), space)
    dilation = _per_dim(call.get("dilation", 1), space)
    kernel = weight.shape[2:]
    x = F.pad(x, _padding(call.get("padding", 0), kernel, dilation))
    for d in range(space):
        x = x.unfold(2 + d, (kernel[d] - 1) * dilation[d] + 1, stride[d])
    for d, step in enumerate(dilation):
        x = x[(slice(None),) * (x.ndim - space + d) + (slice(None, None, step),)]
    # (batch, channels, *positions, *kernel) -> one row per batch entry and position
    x = x.movedim(1, 1 + space)
    num_rows = math.prod(x.shape[: 1 + space])
    wanted = max(_FEWEST_ROWS, _ROWS_PER_INPUT * math.prod(weight.shape[1:]))
    chosen = torch.arange(0, num_rows, max(1, num_rows // wanted), device=x.device)
    patches = x[torch.unravel_index(chosen, x.shape[: 1 + space])]
    return patches.reshape(len(chosen), groups, -1).transpose(0, 1)


def _refit(
    name: str,
    tensors: Mapping[str, Tensor],
    uses: Sequence[Consumer],
    gone: Tensor,
    moments: Moments,
) -> dict[str, Tensor]:
    """Refit one weight, in float64; what cannot be expressed by the rest goes to its bias."""
    weight, groups = tensors[name], uses[0].groups
    kernel = math.prod(weight.shape[2:])
    weight_GOI = weight.detach().double().reshape(groups, weight.shape[0] // groups, -1)
    is_gone = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    is_gone[gone.to(weight.device)] = True
    removed = torch.nonzero(is_gone.repeat_interleave(kernel)).flatten()
    kept = torch.nonzero(~is_gone.repeat_interleave(kernel)).flatten()

    sink = _bias_sink(uses)
    mean_GI = moments.origin + moments.total / moments.count
    if not sink:
        mean_GI = torch.zeros_like(mean_GI)
    order = torch.cat([kept, removed])
    covariance_GII = moments.second(mean_GI)[:, order[:, None], order]
    weight_GOI[:, :, kept], shift_GO = refit(
        weight_GOI[:, :, order], mean_GI[:, order], covariance_GII, num_kept=len(kept)
    )
    result = {name: weight_GOI.reshape(weight.shape).to(weight.dtype)}
    if sink:
        sign = 1 if sink == uses[0].bias else -1
        old = tensors[sink].detach()
        result[sink] = (old.double() + sign * shift_GO.flatten()).to(old.dtype)
    return result


def refit(
    weight_GOI: Tensor,
    mean_GI: Tensor,
    covariance_GII: Tensor,
    *,
    num_kept: int,
    count_G: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula itself, for G independent consumers whose kept inputs come first.

    Consumers with fewer inputs than others are padded with inputs whose weights, means and
    covariances are zero, among the kept as among the removed ones.

    Args:
        weight_GOI: weights, float64.
        mean_GI: mean of each input; zero where the consumer has no bias.
        covariance_GII: second moments about that mean.
        num_kept: how many inputs stay, padding included.
        count_G: how many of these are no padding; None where there is none.

    Returns:
        The weights of the kept inputs (G, O, num_kept), and what the bias gains (G, O).
    """
    kept, removed = slice(num_kept), slice(num_kept, None)
    map_GKR = _ridge_solve(covariance_GII[:, kept, kept], covariance_GII[:, kept, removed], count_G)
    added_GOK = weight_GOI[:, :, removed] @ map_GKR.transpose(1, 2)
    shift_GO = (weight_GOI[:, :, removed] @ mean_GI[:, removed, None])[..., 0]
    shift_GO = shift_GO - (added_GOK @ mean_GI[:, kept, None])[..., 0]
    return weight_GOI[:, :, kept] + added_GOK, shift_GO


def _ridge_solve(matrix_GKK: Tensor, right_GKR: Tensor, count_G: Tensor | None) -> Tensor:
    """Solve with a ridge in proportion to the mean variance; more where rounding demands it."""
    size = matrix_GKK.shape[1]
    trace_G = matrix_GKK.diagonal(dim1=1, dim2=2).sum(1)
    scale_G = trace_G / (size if count_G is None else count_G)
    ridge_G = torch.full_like(scale_G, _RIDGE)
    while True:
        shift = (ridge_G * scale_G + 1e-12)[:, None].expand(-1, size)
        factor, failed = torch.linalg.cholesky_ex(matrix_GKK + torch.diag_embed(shift))
        if not failed.any():
            return torch.cholesky_solve(right_GKR, factor)
        ridge_G = torch.where(failed > 0, ridge_G * 10, ridge_G)


def _bias_sink(uses: Sequence[Consumer]) -> str | None:
    """What can take up a constant: the bias, else the running mean of the BatchNorm behind."""
    sinks = {use.bias or use.mean for use in uses}
    return next(iter(sinks)) if len(sinks) == 1 else None


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
