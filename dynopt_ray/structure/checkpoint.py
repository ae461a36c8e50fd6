"""Saving a resized network and loading it into a freshly constructed original."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError, EditError, UnknownNameError
from dynopt_ray.storage import DAMAGE_ERRORS, read_state, write_state
from dynopt_ray.structure.plans import (
    HISTORIES,
    HISTORY,
    RESIZED,
    Optimizers,
    each_optimizer,
    from_state,
    history_of,
    redo,
    to_state,
)
from dynopt_ray.structure.preserve import (
    Transaction,
    from_stored,
    has_extra_state,
    mask_of,
    recompute_weights,
    sharing_memory,
    storable_extra_state,
    update_switches,
    within,
)
from dynopt_ray.structure.stored import (
    End,
    check_ends,
    check_fits,
    load_optimizers,
    modules_by_name,
    optimizer_state,
    parameters_by_name,
    tensors_by_name,
    unwrapped,
)

_KIND = "network"


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizers | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network with its masks, history and optimizer to one safetensors file.

    Names are those of the network as it was written: a file saved from what `torch.compile` or
    DistributedDataParallel returned fits the plain network too.

    Args:
        path: the file; it is replaced only once the new one is complete and on disk.
        model: the network, at any widths. What its modules return from `get_extra_state` is saved,
            if it consists of numbers, strings, lists, tuples, dicts and tensors.
        optimizer: its optimizer, or several; parameter groups and state are saved by parameter
            name.
        metadata: JSON-able values to store in the same file.

    Raises:
        CheckpointError: writing failed (a full disk, say), or a module's extra state cannot be
            written; the previous file is still valid.
    """
    _check_is_network("save", model)
    model = unwrapped(model)
    if any(tensor.is_meta for tensor in tensors_by_name(model).values()):
        raise CheckpointError(
            "save(path, model): the network has no values (it is on the meta device)"
        )
    state = {
        "class": type(model).__qualname__,
        "tensors": tensors_by_name(model),
        "attributes": _attributes(model),
        "extra": _extra_states(model),
        "blocks": _histories(model),
        "masks": _masks(model),
        "history": to_state(history_of(model)),
        "resized": sorted(RESIZED.get(model, ())),
        "optimizer": [optimizer_state(model, one) for one in each_optimizer(optimizer)] or None,
        "metadata": dict(metadata or {}),
    }
    write_state(path, state, kind=_KIND)


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizers | None = None,
    *,
    free: End | Iterable[End] = (),
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
        free: "input", "output" or both: the ends that take their sizes from the file. By default
            a file whose network has other inputs or outputs (three classes instead of ten) is
            refused, unless plans have resized them.

    Returns:
        The saved metadata.

    Raises:
        UnknownNameError: `free` names no end of a network.
        CheckpointError: the file is missing, truncated, altered or foreign, or it does not fit the
            network or the optimizer. Neither has been changed.
    """
    _check_is_network("load", model)
    ends = _ends(free)
    model = unwrapped(model)
    state = read_state(path, kind=_KIND)
    optimizers = each_optimizer(optimizer)
    transaction = Transaction(model, optimizers)

    def loaded() -> None:
        _load_model(path, transaction, model, optimizers, state, ends)
        if optimizers:
            load_optimizers(path, transaction, model, optimizers, state["optimizer"])

    try:
        metadata = dict(state["metadata"])
        with torch.inference_mode(mode=False):
            within(transaction, loaded)
    except DAMAGE_ERRORS as error:
        if isinstance(error, CheckpointError):
            raise
        if isinstance(error, EditError):
            raise CheckpointError(f"{path} does not fit: {error}") from error
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
    free: frozenset[End],
) -> None:
    _redo_blocks(path, model, optimizers, state.get("blocks", {}), transaction)
    tensors = tensors_by_name(model)
    check_fits(path, model, tensors, state)
    resized = RESIZED.get(model, frozenset()) | {(n, d) for n, d in state.get("resized", ())}
    check_ends(path, model, tensors, state["tensors"], resized=resized, free=free)
    for name, tensor in tensors.items():
        value = state["tensors"][name].to(device=tensor.device, dtype=tensor.dtype)
        transaction.assign(tensor, value, None)
        keep = state["masks"].get(name)
        transaction.set_mask(tensor, None if keep is None else keep.to(tensor.device))
    for name, other in sharing_memory(tensors).items():
        if not torch.equal(tensors[name].cpu(), state["tensors"][name].to(tensors[name].dtype)):
            raise CheckpointError(
                f"{path} does not fit: {name!r} shares memory with {other!r} in this network, but "
                "their values in the file differ"
            )
    for name, module in modules_by_name(model).items():
        for attribute, value in state["attributes"].get(name, {}).items():
            _set_attribute(transaction, module, attribute, value)
    recompute_weights(model.modules(), transaction)
    update_switches(model.modules(), transaction)
    _load_extra_states(path, transaction, model, state.get("extra", {}))
    transaction.set_item(HISTORIES, model, from_state(state.get("history", ())))
    transaction.set_item(RESIZED, model, resized)


def _ends(free: End | Iterable[End]) -> frozenset[End]:
    """Return the ends of a network that a caller names.

    Raises:
        UnknownNameError: a name is none of an end.
    """
    names: list[Any] = [free] if isinstance(free, str) else list(free)
    for name in names:
        if name not in get_args(End):
            raise UnknownNameError("end of a network", name, get_args(End))
    return frozenset(names)


def _masks(model: nn.Module) -> dict[str, Any]:
    found = {name: mask_of(parameter) for name, parameter in parameters_by_name(model).items()}
    return {name: keep for name, keep in found.items() if keep is not None}


def _extra_states(model: nn.Module) -> dict[str, Any]:
    return {
        name: storable_extra_state(name, module)
        for name, module in modules_by_name(model).items()
        if has_extra_state(module)
    }


def _load_extra_states(
    path: str | os.PathLike[str],
    transaction: Transaction,
    model: nn.Module,
    saved: Mapping[str, Any],
) -> None:
    modules = {n: m for n, m in modules_by_name(model).items() if has_extra_state(m)}
    for name in [*(saved.keys() - modules.keys()), *(modules.keys() - saved.keys())]:
        where = "file" if name in saved else "network"
        raise CheckpointError(
            f"{path} does not fit: only in the {where} does module {name!r} have extra state "
            "(get_extra_state)"
        )
    for name, module in modules.items():
        now = module.get_extra_state()
        transaction.set_extra_state(module, from_stored(saved[name], now))


def _histories(model: nn.Module) -> dict[str, list[Any]]:
    """Return which blocks were inserted and removed, by the name of the edited module."""
    return {
        name: list(history)
        for name, module in modules_by_name(model).items()
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
    modules = modules_by_name(model)
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
        for name, module in modules_by_name(model).items()
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
