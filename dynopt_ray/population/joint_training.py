"""Training members of packs together, such that each learns what it would learn alone.

All members of a stack take a step in one pass of batched products. What a member computes depends
on its own numbers alone, to the last bit: sums run within a member, rows of data are evaluated in
parts of a fixed number of rows, and one thread computes everything on a CPU, because threads would
share out the members' products in ways that depend on how many there are.

Shapes: P members, S steps, B rows of a batch, I inputs, O outputs, N rows of data, L numbers of a
member.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynopt_ray.population.padded import PaddedMember, PaddedSize, StepRule
from dynopt_ray.tasks import METRICS, MetricFunction

_ROWS_AT_ONCE = 512
_VALUES_AT_ONCE = 1 << 24


def train_together(
    members: Sequence[PaddedMember],
    x_NI: Tensor,
    y_N: Tensor,
    *,
    rows_SPB: Tensor,
    rates_SP: Tensor,
) -> Tensor:
    """Train members of one stack on the cross-entropy of their own batches.

    Args:
        members: trained in place. They must have the same `stack`.
        x_NI: inputs, from `padded_inputs`.
        y_N: labels.
        rows_SPB: the rows of each member's batch at each step, from `batch_rows`.
        rates_SP: each member's learning rate at each step, float64.

    Returns:
        Tensor (S, P), the losses before each step. Those of a member that diverges become NaN or
        infinite; its neighbours are not affected.
    """
    rule = members[0].rule
    with torch.no_grad(), _one_thread(x_NI):
        stack = _Stack.of(members)
        steps = _Steps.of(members, rates_SP.to(torch.float64), stack.values_PL)
        gradient_PL = torch.zeros_like(stack.values_PL)
        losses_SP = torch.empty(rates_SP.shape, dtype=x_NI.dtype, device=x_NI.device)
        for step, rows_PB in enumerate(rows_SPB.to(x_NI.device)):
            x_PBI = x_NI.index_select(0, rows_PB.flatten()).view(*rows_PB.shape, -1)
            losses_SP[step] = _gradient(
                members[0], stack.values_PL, x_PBI, y_N[rows_PB], gradient_PL
            )
            if stack.keep_PL is not None:
                gradient_PL.mul_(stack.keep_PL)
            _step(rule, stack, gradient_PL, steps, step)
            if stack.keep_PL is not None:
                stack.values_PL.mul_(stack.keep_PL)
        stack.write_to(members, num_steps=len(rows_SPB))
    return losses_SP


@dataclass(frozen=True)
class MemberMetrics:
    """How good members are on a whole split.

    Attributes:
        losses: mean cross-entropy of each member.
        metrics: the task's metric of each member.
    """

    losses: list[float]
    metrics: list[float]


def evaluate_together(
    members: Sequence[PaddedMember], x_NI: Tensor, y_N: Tensor, metric: MetricFunction
) -> MemberMetrics:
    """Return the loss and the metric of members of one stack on a split.

    Args:
        members: only read. They must have the same `stack`.
        x_NI: inputs of the split, from `padded_inputs`.
        y_N: labels.
        metric: the task's metric.
    """
    num_outputs = members[0].layout.num_outputs
    at_once = max(1, _VALUES_AT_ONCE // (max(members[0].size.units) * _ROWS_AT_ONCE))
    losses: list[float] = []
    metrics: list[float] = []
    with torch.no_grad(), _one_thread(x_NI):
        for start in range(0, len(members), at_once):
            some = members[start : start + at_once]
            values_PL = torch.stack([member.values for member in some])
            outputs_PON = _outputs(some[0].size, some[0].activation, values_PL, x_NI)[
                :, :num_outputs
            ]
            targets_P1N = y_N.expand(len(some), 1, -1)
            logs_PN = outputs_PON.log_softmax(1).gather(1, targets_P1N)[:, 0]
            losses += (-logs_PN.sum(1, dtype=torch.float64) / len(y_N)).tolist()
            metrics += _metrics(outputs_PON, y_N, metric)
    return MemberMetrics(losses, metrics)


def _metrics(outputs_PON: Tensor, y_N: Tensor, metric: MetricFunction) -> list[float]:
    if metric is METRICS["accuracy"].function:
        right_PN = outputs_PON.argmax(1) == y_N
        return right_PN.double().mean(1).tolist()
    return [float(metric(outputs_ON.T.contiguous(), y_N)) for outputs_ON in outputs_PON]


@contextmanager
def _one_thread(like: Tensor) -> Iterator[None]:
    before = torch.get_num_threads()
    if like.device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class _Stack:
    """The numbers of some members, stacked for some steps."""

    values_PL: Tensor
    moments_PL: tuple[Tensor, ...]
    keep_PL: Tensor | None

    @staticmethod
    def of(members: Sequence[PaddedMember]) -> "_Stack":
        keep = None
        if any(member.keep is not None for member in members):
            keep = torch.stack(
                [torch.ones_like(m.values) if m.keep is None else m.keep for m in members]
            )
        return _Stack(
            torch.stack([member.values for member in members]),
            tuple(
                torch.stack([member.moments[number] for member in members])
                for number in range(len(members[0].rule.moments))
            ),
            keep,
        )

    def write_to(self, members: Sequence[PaddedMember], num_steps: int) -> None:
        for place, member in enumerate(members):
            member.values = self.values_PL[place].clone()
            for number, moment_PL in enumerate(self.moments_PL):
                member.moments[number] = moment_PL[place]
            member.num_steps += num_steps


@dataclass(frozen=True, eq=False)
class _Steps:
    """What each member's optimizer does at each step, (S, P, 1), and what it always does, (P, 1).

    Attributes:
        rate: the learning rate, with Adam over 1 − β₁ᵗ.
        root: of Adam: √(1 − β₂ᵗ).
        shrink: of AdamW: 1 − rate · decay.
        momentum: of SGD.
        lerp: of Adam: 1 − β₁ and 1 − β₂.
        eps: of Adam.
        decay: the weight decay.
    """

    rate: Tensor
    root: Tensor
    shrink: Tensor
    momentum: Tensor
    lerp: tuple[Tensor, Tensor]
    eps: Tensor
    decay: Tensor

    @staticmethod
    def of(members: Sequence[PaddedMember], rates_SP: Tensor, like: Tensor) -> "_Steps":
        rules = [member.rule for member in members]

        def numbers(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device="cpu")

        def ready(values: Tensor) -> Tensor:
            return values.to(like.dtype).to(like.device).unsqueeze(-1)

        before_P = numbers([member.num_steps for member in members])
        step_SP = (
            before_P
            + torch.arange(1, len(rates_SP) + 1, dtype=torch.float64, device="cpu")[:, None]
        )
        first_P, second_P = (numbers([rule.betas[index] for rule in rules]) for index in range(2))
        decay_P = numbers([rule.weight_decay for rule in rules])
        return _Steps(
            rate=ready(rates_SP / (1 - first_P**step_SP)),
            root=ready((1 - second_P**step_SP).sqrt()),
            shrink=ready(1 - rates_SP * decay_P),
            momentum=ready(numbers([rule.momentum for rule in rules])),
            lerp=(ready(1 - first_P), ready(1 - second_P)),
            eps=ready(numbers([rule.eps for rule in rules])),
            decay=ready(decay_P),
        )


def _step(rule: StepRule, stack: _Stack, gradient_PL: Tensor, steps: _Steps, step: int) -> None:
    """Take one step of every member, as torch's optimizers do; the gradient is overwritten."""
    values_PL = stack.values_PL
    if rule.weight_decay and rule.name == "adamw":
        values_PL.mul_(steps.shrink[step])
    elif rule.weight_decay:
        gradient_PL.addcmul_(values_PL, steps.decay)
    if rule.name == "sgd":
        change_PL = gradient_PL
        for momentum_PL in stack.moments_PL:
            change_PL = momentum_PL.mul_(steps.momentum).add_(gradient_PL)
        if rule.nesterov:
            change_PL = gradient_PL.addcmul_(change_PL, steps.momentum)
    else:
        mean_PL, square_PL = stack.moments_PL
        mean_PL.lerp_(gradient_PL, steps.lerp[0])
        square_PL.lerp_(gradient_PL.square_(), steps.lerp[1])
        torch.sqrt(square_PL, out=gradient_PL)
        gradient_PL.div_(steps.root[step]).add_(steps.eps)
        change_PL = torch.div(mean_PL, gradient_PL, out=gradient_PL)
    values_PL.addcmul_(change_PL, steps.rate[step], value=-1)


@dataclass(frozen=True, eq=False)
class _Pass:
    """A forward pass.

    Attributes:
        inputs: the inputs of every layer, (P, B, I).
        before: what goes into the nonlinearity after each hidden layer, if autograd is to derive
            it; else empty.
        outputs_POB: the outputs.
    """

    inputs: list[Tensor]
    before: list[Tensor]
    outputs_POB: Tensor


def _forward(
    size: PaddedSize, activation: nn.Module, values_PL: Tensor, x_PBI: Tensor, *, derive: bool
) -> _Pass:
    inputs, before = [x_PBI], []
    last = len(size.layers) - 1
    for layer in range(last):
        weight_POI, bias_PO = size.weights(values_PL, layer), size.biases(values_PL, layer)
        out = torch.baddbmm(bias_PO[:, None], inputs[-1], weight_POI.transpose(1, 2))
        if isinstance(activation, nn.ReLU):
            inputs.append(out.relu_())
        elif derive:
            before.append(out.requires_grad_())
            with torch.enable_grad():
                inputs.append(activation(out))
        else:
            inputs.append(activation(out))
    weight_POI, bias_PO = size.weights(values_PL, last), size.biases(values_PL, last)
    # Classes come before rows, because a softmax over a short last dimension is slow.
    outputs = torch.baddbmm(bias_PO[:, :, None], weight_POI, inputs[-1].transpose(1, 2))
    return _Pass(inputs, before, outputs)


def _outputs(size: PaddedSize, activation: nn.Module, values_PL: Tensor, x_NI: Tensor) -> Tensor:
    """Return the outputs for all rows, (P, O, N), in parts of a fixed number of rows."""
    num_members = len(values_PL)
    parts = [
        _forward(
            size, activation, values_PL, x_BI.expand(num_members, -1, -1), derive=False
        ).outputs_POB
        for x_BI in torch.split(x_NI, _ROWS_AT_ONCE)
    ]
    return torch.cat(parts, 2)


def _gradient(
    like: PaddedMember, values_PL: Tensor, x_PBI: Tensor, y_PB: Tensor, gradient_PL: Tensor
) -> Tensor:
    """Write the gradient of every member's mean loss, and return the losses (P,)."""
    size, num_outputs = like.size, like.layout.num_outputs
    forward = _forward(size, like.activation, values_PL, x_PBI, derive=True)
    outputs_POB = forward.outputs_POB
    batch_size, targets_P1B = x_PBI.shape[1], y_PB[:, None]
    logs_POB = outputs_POB[:, :num_outputs].log_softmax(1)
    losses_P = -logs_POB.gather(1, targets_P1B)[:, 0].sum(1) / batch_size
    # Outputs that pad have no part in the loss, so their errors are zero.
    error_POB = torch.zeros_like(outputs_POB)
    torch.exp(logs_POB, out=logs_POB)
    logs_POB.scatter_add_(1, targets_P1B, torch.full_like(logs_POB[:, :1], -1.0))
    error_POB[:, :num_outputs] = logs_POB.div_(batch_size)
    for layer in reversed(range(len(size.layers))):
        before_POB = error_POB
        if layer:
            error_PBI = torch.bmm(before_POB.transpose(1, 2), size.weights(values_PL, layer))
            error_PBI = _derived(forward, layer, error_PBI)
            error_POB = error_PBI.transpose(1, 2)
        size.weights(gradient_PL, layer).copy_(
            torch.bmm(before_POB, forward.inputs[layer].detach())
        )
        size.biases(gradient_PL, layer).copy_(before_POB.sum(2))
    return losses_P


def _derived(forward: _Pass, layer: int, error_PBI: Tensor) -> Tensor:
    """Return the errors before the nonlinearity in front of a layer."""
    inputs = forward.inputs[layer]
    if not forward.before:
        # ReLU's outputs are zero exactly where its gradient is.
        derived: Tensor = torch.ops.aten.threshold_backward(error_PBI, inputs, 0)
        return derived
    return torch.autograd.grad(inputs, forward.before[layer - 1], error_PBI)[0]
