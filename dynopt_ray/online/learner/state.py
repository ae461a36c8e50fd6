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
from dynopt_ray.training import copied, load_optimizer_state, optimizer_state


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


_PARTS = {
    "kinds",
    "counters",
    "model",
    "extra",
    "modes",
    "structure",
    "masks",
    "optimizer",
    "rates",
    "memory",
    "quarantine",
    "detector",
    "reactions",
}


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
    """Restore a state that `learner_state` returned, after checking that all of it fits.

    Raises:
        CheckpointError: the state belongs to another kind of learner; nothing has been changed.
    """
    _check_parts(learner, state)
    with _resized(learner, state["structure"]):
        _check_tensors(learner.model, state["model"])
        _check_optimizer(learner.optimizer, state["optimizer"])
        if learner.detector is not None:
            learner.detector.load_state_dict(state["detector"])
    _load_network(learner, state)
    load_optimizer_state(learner.optimizer, state["optimizer"])
    learner.rates.load_state_dict(state["rates"])
    device = next((p.device for p in learner.model.parameters()), torch.device("cpu"))
    learner.memory.load_state_dict({k: v.to(device) for k, v in state["memory"].items()})
    learner.quarantine.load_state_dict(state["quarantine"])
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
def _resized(learner: LearnerParts, saved: Mapping[str, Any] | None) -> Iterator[None]:
    """Resize the network to the widths of a state; undo this if the block raises an error."""
    graph = learner.structure
    if graph is None or saved is None:
        yield
        return
    plan, num_edits, receipt = _plan_to(graph, saved["widths"]), graph.num_edits, None
    try:
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


def _plan_to(graph: Graph, widths: Mapping[str, int]) -> list[Edit]:
    """Return the edits that change a network's present widths to the widths of a state."""
    plan: list[Edit] = []
    for group in graph.groups:
        wanted = widths.get(group.name, group.width)
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
    if set(state) | {"extra"} != _PARTS:
        raise CheckpointError(
            f"this is not the state of a learner: it has the keys {sorted(state)}, but a learner's "
            f"state has {sorted(_PARTS)}"
        )
    for name, kinds in _kinds(learner).items():
        saved = state["kinds"][name]
        if kinds != saved:
            raise CheckpointError(
                f"the {name} {'are' if name == 'reactions' else 'is'} {', '.join(kinds) or 'none'} "
                f"in the learner but {', '.join(saved) or 'none'} in the state; build this "
                "learner like the saved one"
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
        raise CheckpointError(f"only {owner} has {name!r}: the state belongs to another network")
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise CheckpointError(
                f"{name!r} is {tuple(saved[name].shape)} {saved[name].dtype} in the state but "
                f"{tuple(tensor.shape)} {tensor.dtype} in the network: the state belongs to "
                "another network"
            )


def _check_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved["groups"]]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"the optimizer has groups of {sizes} parameters, but the state has groups of "
            f"{saved_sizes}"
        )
    keys = [sorted(group) for group in optimizer.param_groups]
    saved_keys = [sorted(group) for group in saved["groups"]]
    if keys != saved_keys:
        raise CheckpointError(
            f"the optimizer is {type(optimizer).__name__} with settings {keys[0]}, but the state "
            f"belongs to one with {saved_keys[0]}"
        )
