"""Saving a resized network and loading it into a freshly constructed original."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError, EditError
from dynopt_ray.storage import DAMAGE_ERRORS, read_state, write_state
from dynopt_ray.structure.plans import (
    HISTORIES,
    HISTORY,
    Optimizers,
    check_saved_state,
    each_optimizer,
    from_state,
    history_of,
    redo,
    to_state,
)
from dynopt_ray.structure.preserve import Transaction, masked_parameters, within
from dynopt_ray.structure.tracing import named_tensors

_KIND = "network"
# Options that choose an implementation. They are not loaded, because the right choice depends on
# the device that the optimizer now runs on.
_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizers | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network with its masks, history and optimizer to one safetensors file.

    Args:
        path: the file; it is replaced only once the new one is complete and on disk.
        model: the network, at any widths.
        optimizer: its optimizer, or several; parameter groups and state are saved by parameter
            name.
        metadata: JSON-able values to store in the same file.

    Raises:
        CheckpointError: writing failed (a full disk, say); the previous file is still valid.
    """
    _check_is_network("save", model)
    state = {
        "class": type(model).__qualname__,
        "tensors": named_tensors(model),
        "attributes": _attributes(model),
        "blocks": _histories(model),
        "masks": masked_parameters(model),
        "history": to_state(history_of(model)),
        "optimizer": [_optimizer_state(model, one) for one in each_optimizer(optimizer)] or None,
        "metadata": dict(metadata or {}),
    }
    write_state(path, state, kind=_KIND)


def load(
    path: str | os.PathLike[str], model: nn.Module, optimizer: Optimizers | None = None
) -> dict[str, Any]:
    """Load a saved network, and its optimizer, into a freshly constructed original.

    The network may be on any device and have any floating-point dtype; it keeps both. Parameters
    keep their identity, so the optimizer may be created before loading. `history_of` returns the
    plans that made the saved network.

    Args:
        path: a file that `save` wrote.
        model: a network made by the saved network's constructor, at its original widths or any
            others.
        optimizer: an optimizer of the saved class over `model`'s parameters, in the same groups;
            or a list of as many as were saved, in the same order.

    Returns:
        The saved metadata.

    Raises:
        CheckpointError: the file is missing, truncated, altered or foreign, or it does not fit the
            network or the optimizer. Neither has been changed.
    """
    _check_is_network("load", model)
    state = read_state(path, kind=_KIND)
    optimizers = each_optimizer(optimizer)
    transaction = Transaction(model, optimizers)

    def loaded() -> None:
        _load_model(path, transaction, model, optimizers, state)
        if optimizers:
            _load_optimizers(path, transaction, model, optimizers, state["optimizer"])

    try:
        metadata = dict(state["metadata"])
        within(transaction, loaded)
    except DAMAGE_ERRORS as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} does not hold a network that save wrote: {error!r}"
        ) from error
    return metadata


def _check_is_network(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"{function}(path, model): the second argument is a {type(model).__name__}, not a "
            "network (an nn.Module)"
        )


def _load_model(
    path: str | os.PathLike[str],
    transaction: Transaction,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    state: Mapping[str, Any],
) -> None:
    _redo_blocks(path, model, optimizers, state.get("blocks", {}), transaction)
    tensors = named_tensors(model)
    _check_fits(path, model, tensors, state)
    for name, tensor in tensors.items():
        value = state["tensors"][name].to(device=tensor.device, dtype=tensor.dtype)
        transaction.assign(tensor, value, None)
        keep = state["masks"].get(name)
        transaction.set_mask(tensor, None if keep is None else keep.to(tensor.device))
    for name, module in model.named_modules():
        for attribute, value in state["attributes"].get(name, {}).items():
            _set_attribute(transaction, module, attribute, value)
    transaction.set_item(HISTORIES, model, from_state(state.get("history", ())))


def _histories(model: nn.Module) -> dict[str, list[Any]]:
    """Return which blocks were inserted and removed, by the name of the edited module."""
    return {
        name: list(history)
        for name, module in model.named_modules()
        if (history := vars(module).get(HISTORY))
    }


def _redo_blocks(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    histories: Mapping[str, list[Any]],
    log: Transaction,
) -> None:
    """Insert and remove the blocks that were inserted and removed in the saved network."""
    modules = dict(model.named_modules())
    for name in [*histories, *_histories(model).keys() - histories.keys()]:
        module = modules.get(name)
        done = [] if module is None else vars(module).get(HISTORY, [])
        wanted = histories.get(name, [])
        if module is None or done != wanted[: len(done)]:
            raise CheckpointError(
                f"{path} does not fit: other blocks were inserted or removed in "
                f"{name or 'the network'!r}"
            )
        try:
            for change in wanted[len(done) :]:
                redo(module, change, optimizers, log)
        except EditError as error:
            raise CheckpointError(f"{path} does not fit: {error}") from error


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return all integers and sequences of integers among the modules' attributes.

    Sizes are among them.
    """
    return {
        name: found
        for name, module in model.named_modules()
        if (
            found := {
                attribute: list(value) if isinstance(value, tuple | list) else value
                for attribute, value in vars(module).items()
                if not attribute.startswith("_") and _is_size(value)
            }
        )
    }


def _is_size(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(type(entry) is int for entry in value)
    return type(value) is int


def _set_attribute(transaction: Transaction, module: nn.Module, name: str, value: Any) -> None:
    old = None if name.startswith("_") else vars(module).get(name)
    if isinstance(old, tuple | list) and isinstance(value, list):
        value = type(old)(value)
    if _is_size(old) and type(old) is type(value) and old != value:
        transaction.set_attribute(module, name, value)


def _check_fits(
    path: str | os.PathLike[str],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    saved = state["tensors"]
    for name in [*(saved.keys() - tensors.keys()), *(tensors.keys() - saved.keys())]:
        where = "file" if name in saved else "network"
        raise CheckpointError(
            f"{path} was saved from a {state['class']} and does not fit this "
            f"{type(model).__qualname__}: only the {where} has {name!r}"
        )
    for name, tensor in tensors.items():
        if saved[name].ndim != tensor.ndim:
            raise CheckpointError(
                f"{path} does not fit: {name!r} has {saved[name].ndim} dimensions in the file and "
                f"{tensor.ndim} in this {type(model).__qualname__}"
            )
        if _numbers(saved[name]) != _numbers(tensor):
            raise CheckpointError(
                f"{path} does not fit: {name!r} has dtype {saved[name].dtype} in the file and "
                f"{tensor.dtype} in this {type(model).__qualname__}"
            )
    for name, keep in state["masks"].items():
        if name not in tensors or keep.dtype != torch.bool or keep.shape != saved[name].shape:
            raise CheckpointError(f"{path} has been altered: its mask {name!r} fits no parameter")


def _numbers(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Return the kind of numbers a tensor holds, whatever their precision."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        missing = [p for p in group["params"] if p not in names]
        if missing:
            raise CheckpointError(
                f"the optimizer has a parameter of shape {tuple(missing[0].shape)} that the "
                "network lacks; save the optimizer with the network that it trains"
            )
        options = {k: v for k, v in group.items() if k != "params"}
        groups.append({"params": [names[p] for p in group["params"]], "options": options})
    state = {name: dict(optimizer.state[p]) for p, name in names.items() if p in optimizer.state}
    return {"class": type(optimizer).__qualname__, "groups": groups, "state": state}


def _load_optimizers(
    path: str | os.PathLike[str],
    transaction: Transaction,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    saved: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> None:
    if saved is None:
        raise CheckpointError(f"{path} was saved without an optimizer; call load without one")
    several = [saved] if isinstance(saved, Mapping) else saved
    if len(several) != len(optimizers):
        raise CheckpointError(
            f"{path} was saved with {len(several)} optimizers; load it with as many, not "
            f"{len(optimizers)}"
        )
    for optimizer, one in zip(optimizers, map(dict, several), strict=True):
        _load_optimizer(path, transaction, model, optimizer, one)


def _load_optimizer(
    path: str | os.PathLike[str],
    transaction: Transaction,
    model: nn.Module,
    optimizer: Optimizer,
    saved: Mapping[str, Any],
) -> None:
    if saved["class"] != type(optimizer).__qualname__:
        raise CheckpointError(
            f"{path} has the state of {saved['class']}, which {type(optimizer).__qualname__} "
            "cannot use"
        )
    parameters = dict(model.named_parameters())
    groups = list(_matching_groups(path, parameters, optimizer, [*map(dict, saved["groups"])]))
    states = {parameters[name]: dict(state) for name, state in saved["state"].items()}
    try:
        check_saved_state(
            optimizer,
            [dict(options) for _, options in groups],
            [[states.get(parameter) for parameter in group["params"]] for group, _ in groups],
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit: {error}") from error
    for group, options in groups:
        for key, value in options.items():
            if key not in _IMPLEMENTATION | {"params"}:
                transaction.set_item(group, key, _as_kind(group.get(key), value))
    for parameter in parameters.values():
        state = states.get(parameter)
        moved = None if state is None else _moved_state(state, parameter)
        transaction.set_state(optimizer, parameter, moved)


def _matching_groups(
    path: str | os.PathLike[str],
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    saved: list[Mapping[str, Any]],
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    if len(saved) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path} has {len(saved)} parameter groups, this optimizer "
            f"{len(optimizer.param_groups)}"
        )
    for index, (group, other) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        wanted = [parameters.get(name) for name in other["params"]]
        if len(wanted) != len(group["params"]) or any(
            one is not two for one, two in zip(wanted, group["params"], strict=True)
        ):
            raise CheckpointError(
                f"{path}: parameter group {index} holds other parameters than this optimizer's; "
                "create the optimizer with the same parameter groups as before saving"
            )
        yield group, other["options"]


def _as_kind(old: object, value: Any) -> Any:
    """Convert a saved option to its type in the optimizer: a tuple, a tensor or a number."""
    if isinstance(old, tuple):
        return tuple(value)
    if isinstance(old, Tensor):
        return torch.as_tensor(value).to(old, copy=True)
    if isinstance(old, int | float):
        value = value.item() if isinstance(value, Tensor) else value
        if not isinstance(value, int | float):
            raise TypeError(f"an option is {value!r} instead of a number")
    return value


def _moved_state(state: Mapping[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """Move moments to the parameter's device and dtype; leave step counts unchanged."""
    return {
        key: value.to(device=parameter.device, dtype=parameter.dtype)
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point()
        else value
        for key, value in state.items()
    }
