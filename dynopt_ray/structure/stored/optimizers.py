"""The optimizer of a saved network: its options and its state, by parameter name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure.plans import IMPLEMENTATION, StatePlaces, check_saved_state
from dynopt_ray.structure.preserve import Transaction
from dynopt_ray.structure.stored.names import parameters_by_name


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return the options of an optimizer's groups and its state, by parameter name.

    Raises:
        CheckpointError: it has a parameter that the network lacks.
    """
    names = {parameter: name for name, parameter in parameters_by_name(model).items()}
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


def load_optimizers(
    path: str | os.PathLike[str],
    transaction: Transaction,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    saved: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> None:
    """Give the optimizers what `optimizer_state` returned for as many others.

    Raises:
        CheckpointError: they are of other classes, or train other parameters.
    """
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
    parameters = parameters_by_name(model)
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
            if key not in IMPLEMENTATION | {"params"}:
                transaction.set_item(group, key, _as_kind(group.get(key), value))
    places, groups_of = StatePlaces(optimizer), {p: g for g, _ in groups for p in g["params"]}
    for parameter in parameters.values():
        state, group = states.get(parameter), groups_of.get(parameter, {})
        moved = None if state is None else places.moved(state, group, parameter)
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
        return torch.as_tensor(value, device="cpu").to(old, copy=True)
    if isinstance(old, int | float):
        value = value.item() if isinstance(value, Tensor) else value
        if not isinstance(value, int | float):
            raise TypeError(f"an option is {value!r} instead of a number")
    return value
