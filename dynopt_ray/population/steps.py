"""Training a population: one pass trains all members, each on its own batch.

Forward and backward passes are written out, because for matrices this small autograd's bookkeeping
takes longer than the products. It also makes the momentum update part of the product that computes
the gradient (`baddbmm` with beta = momentum).

Shapes: P members, S steps, B rows of a batch, I inputs, O outputs, N rows of data.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dynopt_ray.errors import DataError, DivergedError
from dynopt_ray.population.stack import Population
from dynopt_ray.tasks import epoch_order
from dynopt_ray.transfers import read_numbers, read_together, to_device


def batch_rows(
    num_samples: int, batch_size: int, num_steps: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Return the rows of every member's batches, as `Task.train_steps` draws them for one network.

    Args:
        num_samples: number of rows of data.
        batch_size: rows per batch; at most `num_samples` are used.
        num_steps: number of batches per member.
        generators: one CPU generator per member.

    Returns:
        LongTensor (num_steps, P, min(batch_size, num_samples)).
    """
    batch_size = min(batch_size, num_samples)
    needed = batch_size * num_steps
    num_orders = -(-needed // num_samples)
    rows_PN = torch.stack(
        [
            torch.cat([epoch_order(num_samples, g) for _ in range(num_orders)])[:needed]
            for g in generators
        ]
    )
    return rows_PN.reshape(len(generators), num_steps, batch_size).transpose(0, 1)


def train_steps(
    population: Population,
    x_NI: Tensor,
    y_N: Tensor,
    rows_SPB: Tensor,
    *,
    learning_rate: float | Tensor,
    momentum: float,
    check: bool = True,
) -> Tensor:
    """Train every member by SGD with momentum on the cross-entropy of its own batches.

    Args:
        population: trained in place.
        x_NI: inputs, float32.
        y_N: labels.
        rows_SPB: the rows of each member's batch at each step, from `batch_rows`.
        learning_rate: one learning rate, or a tensor that broadcasts to (S, P): a rate per member,
            per step, or both.
        momentum: as in `torch.optim.SGD`.
        check: whether to check the losses. On a GPU, the host waits for that; False leaves it to
            the caller to read the losses together with other figures, and to check them with
            `check_finite`.

    Returns:
        Tensor (P,), each member's mean loss over its batches.

    Raises:
        DataError: the rows do not fit the population.
        DivergedError: the loss of a member became NaN or infinite. The message names the first
            such member.
    """
    check_rows(population, x_NI, y_N)
    num_steps, num_members, _ = rows_SPB.shape
    like = population.weights[0]
    if not isinstance(learning_rate, Tensor):
        learning_rate = torch.full((), learning_rate, dtype=like.dtype, device=like.device)
    rates_SP = to_device(learning_rate, like.device).to(like.dtype)
    rates_SP = rates_SP.expand(num_steps, num_members)
    classes_O = torch.arange(population.layout.num_outputs, device=y_N.device)
    targets_NO = (y_N[:, None] == classes_O).to(like.dtype)
    # Convert masks once: products of floats with bools would convert them every time.
    masks = [None if keep is None else keep.to(like.dtype) for keep in population.masks]
    losses = torch.zeros(num_members, dtype=like.dtype, device=like.device)
    rows = to_device(rows_SPB, x_NI.device)
    with torch.no_grad():
        for rows_PB, rate_P in zip(rows, rates_SP, strict=True):
            x_PBI, targets_PBO = x_NI[rows_PB], targets_NO[rows_PB]
            losses += _step(population, x_PBI, targets_PBO, masks, -rate_P, momentum)
    losses /= num_steps
    if check:
        check_finite(losses, f"in {num_steps} training steps")
    return losses


def forward(population: Population, x_PBI: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the inputs of every layer, and the outputs (P, O, B).

    `x_PBI` may have the shape (1, B, I) if all members get the same inputs. In the outputs, classes
    come before rows, because a softmax over a short last dimension takes twenty times as long.
    """
    values = [x_PBI.expand(len(population), -1, -1)]
    *hidden, last = zip(population.weights, population.biases, strict=True)
    for weight_POI, bias_PO in hidden:
        out = torch.baddbmm(bias_PO[:, None], values[-1], weight_POI.transpose(1, 2))
        values.append(out.relu_())
    weight_POI, bias_PO = last
    return values, torch.baddbmm(bias_PO[:, :, None], weight_POI, values[-1].transpose(1, 2))


def check_finite(losses_P: Tensor, when: str) -> None:
    """Refuse losses that are not finite.

    Raises:
        DivergedError: a loss is not finite. The message names the first such member.
    """
    (losses_P,) = read_together([losses_P])
    if not bool(losses_P.isfinite().all()):
        member = int((~losses_P.isfinite()).nonzero()[0])
        raise DivergedError(
            f"the loss of member {member} is {losses_P[member].item()} {when}; lower its learning "
            "rate, or load an earlier state into it"
        )


def check_rows(population: Population, x_NI: Tensor, y_N: Tensor) -> None:
    """Refuse rows that do not fit a population; labels of another shape would be broadcast.

    Raises:
        DataError: inputs or labels have the wrong shape or type, or a label is outside the classes.
    """
    layout = population.layout
    if x_NI.ndim != 2 or x_NI.shape[1] != layout.num_inputs or not x_NI.is_floating_point():
        raise DataError(
            f"x is {x_NI.dtype} of shape {tuple(x_NI.shape)}; the networks need floats of shape "
            f"(rows, {layout.num_inputs})"
        )
    if y_N.shape != x_NI.shape[:1] or y_N.dtype != torch.int64:
        raise DataError(
            f"y is {y_N.dtype} of shape {tuple(y_N.shape)}; it must hold one int64 label per row, "
            f"so have the shape ({len(x_NI)},)"
        )
    low, high = _label_range(y_N)
    if low < 0 or high >= layout.num_outputs:
        raise DataError(
            f"y holds label {low if low < 0 else high}; the networks know the classes 0 to "
            f"{layout.num_outputs - 1}"
        )


_label_ranges: Any = WeakTensorKeyDictionary()
"""Labels -> their version and their range. Reading it makes the host wait for a GPU."""


def _label_range(y_N: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest label; (0, 0) if there are none."""
    version = -1 if y_N.is_inference() else y_N._version  # inference tensors have none
    extremes: tuple[int, int]
    known, extremes = _label_ranges.get(y_N, (None, (0, 0)))
    if known != version or version < 0:
        low, high = read_numbers(y_N.aminmax()) if len(y_N) else (0, 0)
        extremes = int(low), int(high)
        _label_ranges[y_N] = version, extremes
    return extremes


def _step(
    population: Population,
    x_PBI: Tensor,
    targets_PBO: Tensor,
    masks: Sequence[Tensor | None],
    rate_P: Tensor,
    momentum: float,
) -> Tensor:
    """Take one step of every member and return the losses before it; `rate_P` is negative."""
    inputs, outputs_POB = forward(population, x_PBI)
    targets_POB = targets_PBO.transpose(1, 2)
    log_probabilities = outputs_POB.log_softmax(1)
    batch_size = x_PBI.shape[1]
    losses_P = -(log_probabilities * targets_POB).sum((1, 2)) / batch_size
    error_POB = log_probabilities.exp_().sub_(targets_POB).div_(batch_size)
    for layer in reversed(range(population.num_layers)):
        weight, weight_momentum, bias, bias_momentum = population.tensors(layer)
        before = error_POB
        if layer:
            error_PBI = torch.bmm(before.transpose(1, 2), weight)
            # ReLU's outputs are zero exactly where its gradient is.
            error_PBI = torch.ops.aten.threshold_backward(error_PBI, inputs[layer], 0)
            error_POB = error_PBI.transpose(1, 2)
        weight_momentum.baddbmm_(before, inputs[layer], beta=momentum)
        keep = masks[layer]
        if keep is not None:
            weight_momentum.mul_(keep)
        weight.addcmul_(weight_momentum, rate_P[:, None, None])
        bias_momentum.mul_(momentum).add_(before.sum(2))
        bias.addcmul_(bias_momentum, rate_P[:, None])
    return losses_P
