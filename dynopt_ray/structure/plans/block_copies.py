"""Inserting and removing the blocks of a live network, and their parameters in its optimizers.

Names of modules never change: a removed block is replaced by a `Skip`, and an inserted block gets a
new name of its own. The network lists these changes in an attribute, so that `save` can store them
and `load` can repeat them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynopt_ray.errors import EditError
from dynopt_ray.structure.plans.optimizer_state import join, leave
from dynopt_ray.structure.preserve import Transaction, mask_of

HISTORY = "_blocks_edited"
"""The attribute in which a network lists its block changes, as JSON-able dicts."""


class Skip(nn.Module):
    """Takes the place of a removed block and returns its first argument.

    Args:
        num_others: number of outputs that the block had after the first; they are None now. None
            means that the block returned a tensor, not a tuple.
    """

    def __init__(self, num_others: int | None = None) -> None:
        super().__init__()
        self._num_others = num_others

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        return first if self._num_others is None else (first, *(None,) * self._num_others)


def take_out(
    model: nn.Module,
    name: str,
    num_others: int | None,
    optimizers: Sequence[Optimizer],
    log: Transaction,
) -> None:
    """Replace a block by a `Skip`, and remove its parameters from the optimizers.

    Args:
        model: the network.
        name: name of the block.
        num_others: number of its outputs after the first; see `Skip`.
        optimizers: the optimizers that train the network.
        log: the transaction that can undo the change.
    """
    parent, key = _place(model, name)
    block = model.get_submodule(name)
    log.set_attribute(parent, "_modules", {**parent._modules, key: Skip(num_others)})
    left = {id(parameter) for parameter in model.parameters()}
    for parameter in block.parameters():
        for optimizer in optimizers if id(parameter) not in left else ():
            leave(optimizer, parameter, log)
    _note(model, {"remove": name, "num_others": num_others}, log)


def copied(model: nn.Module, like: Sequence[str]) -> nn.Module:
    """Return copies of some modules as one block."""
    modules = [copy.deepcopy(model.get_submodule(name)) for name in like]
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def put_in(
    model: nn.Module,
    after: str,
    block: nn.Module,
    like: Sequence[str],
    optimizers: Sequence[Optimizer],
    log: Transaction,
) -> None:
    """Insert a block after another one of the same `nn.Sequential` or `nn.ModuleList`.

    Each of its parameters gets the mask of the parameter that it is a copy of, and joins the same
    parameter groups.

    Args:
        model: the network.
        after: name of the block that it comes after.
        block: the new block, made by `copied`.
        like: names of the modules that it is a copy of.
        optimizers: the optimizers that train the network.
        log: the transaction that can undo the change.
    """
    parent, key = _place(model, after)
    taken = parent._modules
    new = next(f"{key}_{n}" for n in range(1, len(taken) + 2) if f"{key}_{n}" not in taken)
    modules: dict[str, nn.Module | None] = {}
    for name, module in taken.items():
        modules[name] = module
        if name == key:
            modules[new] = block
    log.set_attribute(parent, "_modules", modules)
    parts = [block] if len(like) == 1 else [*block.children()]
    for name, part in zip(like, parts, strict=True):
        twins = model.get_submodule(name).parameters()
        for parameter, twin in zip(part.parameters(), twins, strict=True):
            log.set_mask(parameter, None if (keep := mask_of(twin)) is None else keep.clone())
            for optimizer in optimizers:
                join(optimizer, parameter, twin, log)
    _note(model, {"insert": after, "like": list(like)}, log)


def redo(
    model: nn.Module, change: Mapping[str, Any], optimizers: Sequence[Optimizer], log: Transaction
) -> None:
    """Repeat a block change that was made to another network.

    Raises:
        EditError: the network lacks the blocks that the change names.
    """
    try:
        if "remove" in change:
            take_out(model, change["remove"], change["num_others"], optimizers, log)
        else:
            like = change["like"]
            put_in(model, change["insert"], copied(model, like), like, optimizers, log)
    except (AttributeError, KeyError, TypeError) as error:
        raise EditError(f"{dict(change)} names blocks that the network does not have") from error


def _note(model: nn.Module, change: Mapping[str, Any], log: Transaction) -> None:
    log.set_item(vars(model), HISTORY, [*vars(model).get(HISTORY, ()), change])


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the parent of a module, and the module's name in it."""
    parent, _, key = name.rpartition(".")
    return model.get_submodule(parent), key
