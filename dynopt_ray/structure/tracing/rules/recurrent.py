"""Rules for recurrent layers, in which the gates of a unit lie one width apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import rule
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import IdArray, Label, Work


@rule("lstm")
def lstm(trace: Trace, out: Any, input: Tensor, hx: Any, params: Any, *rest: Any) -> None:
    """Four gates. All layers and directions of a module share one hidden width."""
    _recurrent(trace, out, input, hx, params, rest, num_gates=4)


@rule("gru")
def gru(trace: Trace, out: Any, input: Tensor, hx: Any, params: Any, *rest: Any) -> None:
    """Three gates."""
    _recurrent(trace, out, input, hx, params, rest, num_gates=3)


@rule("rnn_tanh", "rnn_relu")
def rnn(trace: Trace, out: Any, input: Tensor, hx: Any, params: Any, *rest: Any) -> None:
    """No gates: one row per unit."""
    _recurrent(trace, out, input, hx, params, rest, num_gates=1)


@rule("lstm_cell")
def lstm_cell(trace: Trace, out: Any, input: Tensor, hx: Any, *params: Any) -> None:
    """One step of an LSTM."""
    _one_step(trace, out, input, hx, params, num_gates=4)


@rule("gru_cell")
def gru_cell(trace: Trace, out: Any, input: Tensor, hx: Any, *params: Any) -> None:
    """One step of a GRU."""
    _one_step(trace, out, input, hx, params, num_gates=3)


@rule("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell(trace: Trace, out: Any, input: Tensor, hx: Any, *params: Any) -> None:
    """One step without gates."""
    _one_step(trace, out, input, hx, params, num_gates=1)


def _one_step(
    trace: Trace, out: Any, input: Tensor, hx: Any, params: Sequence[Any], *, num_gates: int
) -> None:
    given = [p for p in params if p is not None]
    hidden = _units(trace, given[0], num_gates)
    trace.link("hidden_size", hidden)
    _cell(
        trace,
        given,
        hidden,
        hidden,
        num_gates,
        num_steps=input.shape[:-1].numel(),
        has_biases=len(given) > 2,
        projected=False,
    )
    read = trace.units(given[0], 1)
    trace.match(input, -1, read)
    if read is not None:
        trace.link("input_size", read)
    for state in tensors_in(hx):
        trace.match(state, -1, hidden)
    for state in tensors_in(out):
        trace.set(state, (Label((state.ndim - 1,), hidden),))


def _recurrent(
    trace: Trace,
    out: Any,
    input: Tensor,
    hx: Any,
    params: Any,
    rest: Sequence[Any],
    *,
    num_gates: int,
) -> None:
    # Packed sequences have other arguments: the second is the batch size at each step.
    if not isinstance(params, tuple | list) or (num_gates == 4 and isinstance(hx, Tensor)):
        _packed(trace, out, (input, hx, params, rest))
        return
    has_biases, num_layers, _, _, bidirectional, _ = rest
    directions = 2 if bidirectional else 1
    per_cell = len(params) // (num_layers * directions)
    projected = per_cell > (4 if has_biases else 2)
    cells = [params[i : i + per_cell] for i in range(0, len(params), per_cell)]
    hidden = _units(trace, cells[0][0], num_gates)
    made = _units(trace, cells[0][-1], 1) if projected else hidden
    trace.link("hidden_size", hidden)
    for layer in range(num_layers):
        source = input if layer == 0 else None
        for cell in cells[layer * directions : (layer + 1) * directions]:
            _cell(
                trace,
                cell,
                hidden,
                made,
                num_gates,
                num_steps=input.shape[:-1].numel(),
                has_biases=has_biases,
                projected=projected,
            )
            if source is not None:
                trace.match(source, -1, trace.units(cell[0], 1))
            else:
                read = trace.units(cell[0], 1)
                if read is not None:
                    trace.tie(read, np.tile(made, directions))
    read = trace.units(cells[0][0], 1)
    if read is not None:
        trace.link("input_size", read)
    output, *states = out
    along = np.tile(made, directions)
    trace.set(output, (Label((output.ndim - 1,), along),))
    for index, state in enumerate(tensors_in(states)):
        units = made if index == 0 else hidden
        trace.set(state, (Label((state.ndim - 1,), units),))
    for index, state in enumerate(tensors_in(hx)):
        trace.match(state, -1, made if index == 0 else hidden)


def _cell(
    trace: Trace,
    cell: Sequence[Tensor],
    hidden: IdArray,
    made: IdArray,
    num_gates: int,
    *,
    num_steps: int,
    has_biases: bool,
    projected: bool,
) -> None:
    """Trace one layer in one direction. Its parameters are w_ih, w_hh, b_ih, b_hh and w_hr."""
    gates = np.tile(hidden, num_gates)
    input_weight, hidden_weight = cell[:2]
    for weight in (input_weight, hidden_weight):
        _makes_and_reads(trace, weight)
        trace.match(weight, 0, gates)
    trace.match(hidden_weight, 1, made)
    for weight in (input_weight, hidden_weight):
        read = trace.units(weight, 1)
        if read is not None and trace.record.with_costs:
            trace.record.work.append(Work(num_steps, (gates, read)))
    for bias in cell[2:4] if has_biases else ():
        trace.use(bias, "out")
        trace.match(bias, 0, gates)
    if projected:
        _makes_and_reads(trace, cell[-1])
        trace.match(cell[-1], 1, hidden)
        trace.match(cell[-1], 0, made)
        if trace.record.with_costs:
            trace.record.work.append(Work(num_steps, (made, hidden)))


def _makes_and_reads(trace: Trace, weight: Tensor) -> None:
    trace.use(weight, "out", "in")
    trace.makes(weight, 0)
    trace.reads(weight, 1)


def _units(trace: Trace, weight: Tensor, num_gates: int) -> IdArray:
    """Tie the gates of each unit along the rows of a weight, and return one id per unit."""
    rows = trace.units(weight, 0)
    if rows is None:
        return trace.record.fresh(weight.shape[0] // num_gates)
    gates = rows.reshape(num_gates, -1)
    trace.tie(gates, gates[:1])
    first: IdArray = gates[0]
    return first


def _packed(trace: Trace, out: Any, read: Any) -> None:
    for tensor in tensors_in(read):
        trace.use(tensor)
        trace.pin(trace.labels(tensor), "packed sequences are not traced")
    for tensor in tensors_in(out):
        trace.set(tensor, ())
