"""Changing the depth of a network: removing and inserting blocks.

A block is a module that takes a tensor and returns one of the same shape, once per forward pass. A
block that passes its input on unchanged can be removed or inserted without changing the output.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.devices import OF_THE_MACHINE
from dynopt_ray.errors import EditError, TraceError
from dynopt_ray.structure.description import describe
from dynopt_ray.structure.network import Network
from dynopt_ray.structure.plans.block_copies import copied, put_in, take_out
from dynopt_ray.structure.plans.edits import Insert, Remove
from dynopt_ray.structure.plans.exactness import other_inputs, output_change, outputs_of
from dynopt_ray.structure.plans.optimizer_state import OptimizerState
from dynopt_ray.structure.preserve import Transaction
from dynopt_ray.structure.tracing import (
    Call,
    Inputs,
    buffers_kept,
    on_device,
    record_calls,
    run,
    undisturbed,
)

_ROUNDING = 1e-5
_Norm = nn.modules.batchnorm._BatchNorm
_Conv = nn.modules.conv._ConvNd


def remove_block(
    network: Network, edit: Remove, states: Sequence[OptimizerState], log: Transaction
) -> None:
    """Take a block out of a network and its parameters out of its optimizers.

    Raises:
        EditError: the edit is exact but the block changes its input, or the network does not run
            without the block.
    """
    model = network.model
    if edit.exact:
        inputs = network.arguments.example_inputs
        calls = [_calls(network, [edit.block], i)[edit.block] for i in _several(network, inputs)]
        if not all(_same(call.result, call.first) for call in calls):
            raise EditError(
                f"Remove({edit.block!r}): the block changes its input. Pass exact=False to accept "
                "that the network's output changes"
            )
    optimizers = [state.optimizer for state in states]
    take_out(model, edit.block, network.blocks[edit.block], optimizers, log)
    _describe_again(network, log)


def insert_block(
    network: Network, edit: Insert, states: Sequence[OptimizerState], log: Transaction
) -> None:
    """Insert a copy of a block into a network and into the optimizers that train the original.

    Raises:
        EditError: the copy cannot pass its input on unchanged, or it cannot be inserted there.
    """
    model = network.model
    inputs = network.arguments.example_inputs
    calls = _calls(network, [edit.after, edit.like[0]], inputs)
    given, example = calls[edit.after].result, calls[edit.like[0]]
    block = copied(model, edit.like)
    what = f"Insert(after={edit.after!r}): a copy of {', '.join(map(repr, edit.like))} cannot"
    with undisturbed(block, training=False):
        try:
            silent = silence(block, lambda: example.repeated(block, given), given)
        except OF_THE_MACHINE:
            raise
        except Exception as error:  # a forward pass that gets another size may raise anything
            raise EditError(f"{what} follow it: {error}") from error
        if not silent:
            raise EditError(
                f"{what} pass its input on unchanged: it has no residual branch that ends in "
                "layers that can become zero, and it is not a single linear layer or convolution "
                "that can become the identity (with an activation that leaves the result unchanged)"
            )
    optimizers = [state.optimizer for state in states]
    several = _several(network, inputs)
    before = [outputs_of(model, each) for each in several]
    put_in(model, edit.after, block, edit.like, optimizers, log)
    _describe_again(network, log)
    for each, old in zip(several, before, strict=True):
        new = outputs_of(model, each)
        if old and (new is None or output_change(old, new, network.tensors())):
            raise EditError(
                f"{what} be inserted there: it passes its input on unchanged, but the network's "
                "output changes (on other inputs the block is not the identity, or the position of "
                "blocks matters)"
            )


def _describe_again(network: Network, log: Transaction) -> None:
    """Describe the network again after blocks were inserted or removed.

    Raises:
        EditError: the network does not run, or its outputs have other shapes.
    """
    model, arguments = network.model, network.arguments
    names = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    left = replace(arguments, fixed=tuple(name for name in arguments.fixed if name in names))
    try:
        new = describe(model, left)
    except TraceError as error:
        cause = error if error.__cause__ is None else error.__cause__
        raise EditError(
            f"with this change of blocks the network does not run: {type(cause).__name__}: {cause}"
        ) from error
    unchanged = network.output_sizes
    if new.output_sizes[: len(unchanged)] == unchanged and new.output_sizes != unchanged:
        # Parameters that a pass does not reach lead to a second pass, in training mode.
        raise EditError(
            "with this change of blocks the forward pass would not run all blocks: it goes through "
            "them together with other things (zip) or counts them"
        )
    if new.output_sizes != unchanged:
        raise EditError(
            "with this change of blocks the network returns outputs of shapes "
            f"{list(map(tuple, new.output_sizes))}, not {list(map(tuple, network.output_sizes))}"
        )
    for field in fields(new):
        log.set_attribute(network, field.name, getattr(new, field.name))


def _several(network: Network, inputs: Inputs) -> list[Inputs]:
    """Return the inputs, and those of their variants on which the network runs."""
    return [inputs, *(i for i in other_inputs(inputs) if outputs_of(network.model, i))]


def _calls(network: Network, names: Iterable[str], inputs: Inputs) -> dict[str, Call]:
    """Return the one call of each of some modules, with its inputs and outputs.

    Raises:
        EditError: the network has no values, or does not call a module exactly once.
    """
    model = network.model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        raise EditError(
            "blocks are compared by their outputs, and this network has no values (it is on the "
            "meta device)"
        )
    with (
        record_calls(model, names) as seen,
        undisturbed(model, training=False),
        buffers_kept(model),
    ):
        run(model, on_device(inputs, device))
    for name, calls in seen.items():
        if len(calls) != 1:
            raise EditError(
                f"{name!r} is called {len(calls)} times in a forward pass; only blocks that are "
                "called once can be compared"
            )
    return {name: calls[0] for name, calls in seen.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two activations are equal up to rounding."""
    scale = other.abs().max() if other.numel() else other.new_ones(())
    return bool(((one - other).abs() <= _ROUNDING * scale).all())


def silence(block: nn.Module, run: Callable[[], Any], passed_on: Tensor) -> bool:
    """Make a block pass its input on unchanged, by changing as few parameters as possible.

    The last layers of its residual branches become zero. If there are no such branches, its only
    linear layer or convolution becomes the identity (Net2DeeperNet, Chen et al. 2016).

    Args:
        block: a copy of a block; its parameters may change.
        run: calls the block.
        passed_on: the input of that call.

    Returns:
        Whether the block now passes its input on unchanged.
    """

    def identical() -> bool:
        with torch.no_grad():
            out = run()
        out = out[0] if isinstance(out, tuple) else out
        return out.shape == passed_on.shape and _same(out, passed_on)

    layers = [[*m.parameters(recurse=False)] for m in _in_order(block, run)]
    held = [[p.detach().clone() for p in layer] for layer in layers]
    _zero(layers)
    if identical():
        # Restore as many layers as possible: of two zero layers in a row, neither would ever learn.
        for layer, values in zip(layers, held, strict=True):
            _set(layer, values)
            if not identical():
                _zero([layer])
        return True
    for layer, values in zip(layers, held, strict=True):
        _set(layer, values)
    return _become_identity(block, passed_on) and identical()


def _in_order(block: nn.Module, run: Callable[[], Any]) -> list[nn.Module]:
    """Return the modules with parameters of their own, in the order in which they finish."""
    done: dict[nn.Module, None] = {}

    def note(module: nn.Module, *_: Any) -> None:
        done.pop(module, None)
        done[module] = None

    owners = [m for m in block.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(note) for m in owners]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return list(done)


def _become_identity(block: nn.Module, passed_on: Tensor) -> bool:
    """Make the only linear layer or convolution, and all BatchNorms, the identity, if possible."""
    products = [m for m in block.modules() if isinstance(m, nn.Linear | _Conv)]
    if len(products) != 1:
        return False
    (product,) = products
    with torch.no_grad():
        if isinstance(product, nn.Linear):
            nn.init.eye_(product.weight)
        elif product.in_channels == product.out_channels and not product.transposed:
            nn.init.dirac_(product.weight, groups=product.groups)
        else:
            return False
        if product.bias is not None:
            product.bias.zero_()
        for norm in (m for m in block.modules() if isinstance(m, _Norm)):
            if norm.running_mean is None or norm.running_var is None or not norm.affine:
                return False
            dims = [d for d in range(passed_on.ndim) if d != 1]
            norm.running_mean.copy_(passed_on.mean(dims))
            norm.running_var.copy_(passed_on.var(dims, unbiased=False))
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(norm.running_mean)
    return True


def _zero(layers: Iterable[Sequence[nn.Parameter]]) -> None:
    with torch.no_grad():
        for layer in layers:
            for parameter in layer:
                parameter.zero_()


def _set(layer: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(layer, values, strict=True):
            parameter.copy_(value)
