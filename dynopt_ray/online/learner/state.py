"""The state of a learner: everything that determines its future, and how to restore it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError, EditError
from dynopt_ray.online.drift import Detector, Reaction
from dynopt_ray.online.learner.events import Quarantine
from dynopt_ray.online.learner.guard import Guard
from dynopt_ray.online.learner.rates import Rates
from dynopt_ray.online.learner.recent_events import EventBuffer
from dynopt_ray.online.learner.state_checks import check_types
from dynopt_ray.structure import (
    Edit,
    Graph,
    Grow,
    Shrink,
    from_stored,
    has_extra_state,
    masked_parameters,
    named_tensors,
    set_mask,
    storable_extra_state,
)
from dynopt_ray.training import (
    check_optimizer_state,
    copied,
    load_optimizer_state,
    optimizer_state,
)


@dataclass(frozen=True, eq=False)
class LearnerParts:
    """The parts of an `OnlineLearner` that its state depends on."""

    model: nn.Module
    optimizer: Optimizer
    structure: Graph | None
    rates: Rates
    memory: EventBuffer
    quarantine: Quarantine
    detector: Detector | None
    guard: Guard | None
    reactions: Sequence[Reaction]


def learner_state(learner: LearnerParts) -> dict[str, Any]:
    """Return copies of the state of all parts: dicts, lists, numbers, strings and tensors."""
    masks = masked_parameters(learner.model)
    return {
        "kinds": _kinds(learner),
        "model": {name: copied(tensor) for name, tensor in named_tensors(learner.model).items()},
        "extra": _extra(learner.model),
        "modes": _modes(learner.model),
        "structure": _structure(learner.structure),
        "masks": {name: copied(keep) for name, keep in masks.items()},
        "optimizer": optimizer_state(learner.optimizer),
        "rates": learner.rates.state_dict(),
        "memory": learner.memory.state_dict(),
        "quarantine": learner.quarantine.state_dict(),
        "detector": None if learner.detector is None else learner.detector.state_dict(),
        "reactions": [reaction.state_dict() for reaction in learner.reactions],
    }


def load_learner_state(learner: LearnerParts, state: Mapping[str, Any]) -> None:
    """Restore a state that `learner_state` returned, or change nothing.

    All that is known about a state is checked before anything changes. A detector, a reaction or a
    controller may refuse its own part later. Then everything is put back.

    Raises:
        CheckpointError: the state belongs to another kind of learner, or has been altered;
            nothing has been changed.
    """
    check_types(state)
    _check_parts(learner, state)
    before = learner_state(learner)
    try:
        with _resized(learner, state):
            _check_tensors(learner.model, state["model"])
            _check_masks(learner.model, state["masks"])
            check_optimizer_state(learner.optimizer, state["optimizer"])
            _assign(learner, state)
    except CheckpointError:
        _assign(learner, before)
        raise
    except Exception as error:  # a part of the user's own may raise anything
        _assign(learner, before)
        raise CheckpointError(
            f"the state does not fit this learner: {type(error).__name__}: {error!s:.300}"
        ) from error
    except BaseException:
        _assign(learner, before)
        raise


def _assign(learner: LearnerParts, state: Mapping[str, Any]) -> None:
    """Replace the state of every part; the network has the widths of the state already."""
    _load_network(learner, state)
    load_optimizer_state(learner.optimizer, state["optimizer"])
    device = next((p.device for p in learner.model.parameters()), torch.device("cpu"))
    learner.memory.load_state_dict({k: v.to(device) for k, v in state["memory"].items()})
    learner.quarantine.load_state_dict(state["quarantine"])
    # Parts that may be a plugin come last: by then, all others are as they must be.
    learner.rates.load_state_dict(state["rates"])
    if learner.detector is not None:
        learner.detector.load_state_dict(state["detector"])
    for reaction, saved in zip(learner.reactions, state["reactions"], strict=True):
        reaction.load_state_dict(saved)


def _load_network(learner: LearnerParts, state: Mapping[str, Any]) -> None:
    with torch.no_grad():
        for name, tensor in named_tensors(learner.model).items():
            tensor.copy_(state["model"][name])
    for name, module in learner.model.named_modules():
        module.training = state["modes"][name]
        if has_extra_state(module):
            value = from_stored(state["extra"][name], module.get_extra_state())
            module.set_extra_state(value)
    for name, parameter in learner.model.named_parameters():
        keep = state["masks"].get(name)
        set_mask(parameter, None if keep is None else copied(keep).to(parameter.device))


@contextmanager
def _resized(learner: LearnerParts, state: Mapping[str, Any]) -> Iterator[None]:
    """Resize the network to the widths of a state; undo this if the block raises an error."""
    graph, saved = learner.structure, state["structure"]
    if graph is None or saved is None:
        yield
        return
    most_weights = sum(tensor.numel() for tensor in state["model"].values())
    num_edits, receipt = graph.num_edits, None
    try:
        plan = _plan_to(graph, saved["widths"], most_weights)
        if plan:
            receipt = graph.apply(plan, optimizer=learner.optimizer)
        yield
    except BaseException as error:
        if receipt is not None:
            receipt.undo()
        graph.num_edits = num_edits
        if isinstance(error, EditError):
            raise CheckpointError(f"the state belongs to another network: {error}") from error
        raise
    graph.num_edits = saved["num_edits"]


def _plan_to(graph: Graph, widths: Mapping[str, int], most_weights: int) -> list[Edit]:
    """Return the edits that change a network's present widths to the widths of a state.

    Raises:
        CheckpointError: at these widths, the network would have more weights than the state.
    """
    if widths.keys() != graph.widths.keys() or graph.cost(widths).params > most_weights:
        # To try it might take more memory than there is.
        raise CheckpointError("the widths of the state belong to another network than its weights")
    plan: list[Edit] = []
    for group in graph.groups:
        wanted = widths[group.name]
        if wanted > group.width:
            plan.append(Grow(group.name, units=wanted - group.width, exact=False))
        elif wanted < group.width:
            plan.append(Shrink(group.name, keep=range(wanted)))
    return plan


def _kinds(learner: LearnerParts) -> dict[str, list[str]]:
    """Return the types of the parts that can only load the state of a part of the same type."""
    parts: dict[str, Sequence[object]] = {
        "optimizer": [learner.optimizer],
        "rate controller": [learner.rates.controller],
        "detector": [learner.detector],
        "guard": [learner.guard],
        "reactions": learner.reactions,
    }
    return {
        name: [type(part).__name__ for part in found if part is not None]
        for name, found in parts.items()
    }


def _structure(graph: Graph | None) -> dict[str, Any] | None:
    """Return the widths and the number of edits, which seeds the weights of new units."""
    return None if graph is None else {"widths": graph.widths, "num_edits": graph.num_edits}


def _extra(model: nn.Module) -> dict[str, Any]:
    """Return what modules keep outside of tensors (`get_extra_state`), by module name."""
    return {
        name: copy.deepcopy(storable_extra_state(name, module))
        for name, module in model.named_modules()
        if has_extra_state(module)
    }


def _modes(model: nn.Module) -> dict[str, bool]:
    """Return for each module whether it is in train mode."""
    return {name: module.training for name, module in model.named_modules()}


def _check_parts(learner: LearnerParts, state: Mapping[str, Any]) -> None:
    for name, kinds in _kinds(learner).items():
        saved = state["kinds"].get(name, [])
        if kinds != saved:
            raise CheckpointError(
                f"the {name} {'are' if name == 'reactions' else 'is'} {', '.join(kinds) or 'none'} "
                f"in the learner but {', '.join(saved) or 'none'!s:.200} in the state; build this "
                "learner like the saved one"
            )
    controller = state["rates"]["controller"]
    for name, present, saved in (
        ("detector", learner.detector, state["detector"]),
        ("rate controller", learner.rates.controller, controller),
    ):
        if (present is None) != (saved is None):
            raise CheckpointError(f"only one of the learner and the state has a {name}")
    if len(state["reactions"]) != len(learner.reactions):
        raise CheckpointError(
            f"the learner has {len(learner.reactions)} reactions, but the state has the state of "
            f"{len(state['reactions'])}"
        )
    if len(state["rates"]["own"]) != len(learner.optimizer.param_groups):
        raise CheckpointError(
            f"the optimizer has {len(learner.optimizer.param_groups)} parameter groups, but the "
            f"state has the rates of {len(state['rates']['own'])}"
        )
    if (learner.structure is None) != (state["structure"] is None):
        raise CheckpointError(
            "only one of the learner and the state has the network's structure; build this "
            "learner like the saved one, with or without structure="
        )
    has_extra = {n for n, m in learner.model.named_modules() if has_extra_state(m)}
    for name in has_extra ^ state.get("extra", {}).keys():
        raise CheckpointError(
            f"only one of the network and the state has extra state of the module {name!r} "
            "(get_extra_state): the state belongs to another network"
        )
    for name in _modes(learner.model).keys() ^ state["modes"].keys():
        raise CheckpointError(
            f"only one of the network and the state has the module {name!r}: the state belongs to "
            "another network"
        )


def _check_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    tensors = named_tensors(model)
    for name in tensors.keys() ^ saved.keys():
        owner = "the network" if name in tensors else "the state"
        raise CheckpointError(
            f"only {owner} has {name!r:.100}: the state belongs to another network"
        )
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise CheckpointError(
                f"{name!r} is {tuple(saved[name].shape)} {saved[name].dtype} in the state but "
                f"{tuple(tensor.shape)} {tensor.dtype} in the network: the state belongs to "
                "another network"
            )


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, keep in masks.items():
        parameter = parameters.get(name)
        if parameter is None or keep.dtype != torch.bool or keep.shape != parameter.shape:
            raise CheckpointError(
                f"the mask {name!r:.100} of the state fits no parameter of the network"
            )
