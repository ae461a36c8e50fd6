"""The learner's state: everything its future depends on, and how it is put back."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure import Edit, Grow, Mask, Shrink
from dynopt_ray.structure.forward import named_tensors
from dynopt_ray.structure.masks import masked_parameters

if TYPE_CHECKING:
    from dynopt_ray.online.learner import OnlineLearner

_PARTS = {
    "counters",
    "model",
    "widths",
    "masks",
    "optimizer",
    "rates",
    "memory",
    "quarantine",
    "detector",
    "reactions",
}


def learner_state(learner: "OnlineLearner") -> dict[str, Any]:
    """The state of a learner's parts, as copies: dicts, lists, numbers, strings, tensors."""
    return {
        "model": {name: t.detach().clone() for name, t in named_tensors(learner.model).items()},
        "widths": None if learner.structure is None else learner.structure.widths,
        "masks": masked_parameters(learner.model),
        "optimizer": optimizer_state(learner.optimizer),
        "rates": learner.rates.state_dict(),
        "memory": learner.memory.state_dict(),
        "quarantine": learner.quarantine.state_dict(),
        "detector": None if learner.detector is None else learner.detector.state_dict(),
        "reactions": [
            {"kind": type(reaction).__name__, "state": reaction.state_dict()}
            for reaction in learner.reactions
        ],
    }


def load_learner_state(learner: "OnlineLearner", state: Mapping[str, Any]) -> None:
    """Put a state of `learner_state` back; all of it is checked before anything stays changed.

    Raises:
        CheckpointError: it is of another kind of learner.
    """
    _check_parts(learner, state)
    plan = _plan_to(learner, state["widths"], state["masks"])
    receipt = learner.resize(plan) if plan else None
    try:
        _check_tensors(learner.model, state["model"])
        _check_optimizer(learner.optimizer, state["optimizer"])
        if learner.detector is not None:
            learner.detector.load_state_dict(state["detector"])
    except CheckpointError:
        if receipt is not None:
            receipt.undo()
        raise
    with torch.no_grad():
        for name, tensor in named_tensors(learner.model).items():
            tensor.copy_(state["model"][name])
    load_optimizer_state(learner.optimizer, state["optimizer"])
    learner.rates.load_state_dict(state["rates"])
    device = next((p.device for p in learner.model.parameters()), torch.device("cpu"))
    learner.memory.load_state_dict({k: v.to(device) for k, v in state["memory"].items()})
    learner.quarantine.load_state_dict(state["quarantine"])
    for reaction, saved in zip(learner.reactions, state["reactions"], strict=True):
        reaction.load_state_dict(saved["state"])


def _plan_to(
    learner: "OnlineLearner", widths: Mapping[str, int] | None, masks: Mapping[str, Tensor]
) -> list[Edit]:
    """The edits that take a network as it was built to the widths and masks of a state."""
    plan: list[Edit] = []
    for group in learner.structure.groups if learner.structure is not None else ():
        wanted = (widths or {}).get(group.name, group.width)
        if wanted > group.width:
            plan.append(Grow(group.name, units=wanted - group.width, exact=False))
        elif wanted < group.width:
            plan.append(Shrink(group.name, keep=range(wanted)))
    present = masked_parameters(learner.model)
    plan += [
        Mask(name, keep=keep)
        for name, keep in masks.items()
        if name not in present or not torch.equal(present[name].cpu(), keep)
    ]
    if plan and learner.structure is None:
        raise CheckpointError(
            "the state is of a network with masked weights; build the learner with "
            "structure=trace(model, example_inputs), so that they can be masked here"
        )
    return plan


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with string keys and copied tensors, so that JSON can hold it."""
    state = optimizer.state_dict()
    return {
        "state": {
            str(index): {key: _copied(value) for key, value in entry.items()}
            for index, entry in state["state"].items()
        },
        "groups": [
            {key: _copied(value) for key, value in group.items()} for group in state["param_groups"]
        ],
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put a state of `optimizer_state` back."""
    groups = []
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        # JSON has no tuples; `betas` was one.
        groups.append(
            {
                key: tuple(value) if isinstance(group.get(key), tuple) else _copied(value)
                for key, value in saved.items()
            }
        )
    entries = {
        int(index): {key: _copied(value) for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _check_parts(learner: "OnlineLearner", state: Mapping[str, Any]) -> None:
    if set(state) != _PARTS:
        raise CheckpointError(
            f"not the state of a learner: it has {sorted(state)}, a learner has {sorted(_PARTS)}"
        )
    if (learner.structure is None) != (state["widths"] is None):
        raise CheckpointError(
            "only one of learner and state knows the network's structure; build the learner as "
            "it was saved, with or without structure="
        )
    if (learner.rates.controller is None) != (state["rates"]["controller"] is None):
        raise CheckpointError(
            "only one of learner and state has an LR controller; build the learner as it was saved"
        )
    if (learner.detector is None) != (state["detector"] is None):
        has, lacks = ("the learner", "the state")
        if learner.detector is None:
            has, lacks = lacks, has
        raise CheckpointError(
            f"{has} has a drift detector, {lacks} has none; build the learner as it was saved"
        )
    kinds = [type(reaction).__name__ for reaction in learner.reactions]
    saved_kinds = [saved["kind"] for saved in state["reactions"]]
    if kinds != saved_kinds:
        raise CheckpointError(
            f"the learner reacts with {kinds}, the state is of {saved_kinds}; build the learner "
            "as it was saved"
        )


def _check_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    tensors = named_tensors(model)
    for name in tensors.keys() ^ saved.keys():
        owner = "the network" if name in tensors else "the state"
        raise CheckpointError(f"only {owner} has {name!r}: the state is of another network")
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise CheckpointError(
                f"{name!r} is {tuple(saved[name].shape)} {saved[name].dtype} in the state but "
                f"{tuple(tensor.shape)} {tensor.dtype} in the network: it is of another network"
            )


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved["groups"]]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"the optimizer has groups of {sizes} parameters, the state of {saved_sizes}"
        )
    keys = [sorted(group) for group in optimizer.param_groups]
    saved_keys = [sorted(group) for group in saved["groups"]]
    if keys != saved_keys:
        raise CheckpointError(
            f"the optimizer is {type(optimizer).__name__} with settings {keys[0]}, the state is "
            f"of one with {saved_keys[0]}"
        )
