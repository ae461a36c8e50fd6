"""Blocks that come and go in a live network: what stands where, and who trains it.

Names never change: a removed block leaves a `Skip` in its place, and an inserted one gets a name
of its own between its neighbours'. The network itself remembers what was done, so that `save` can
write it down and `load` can do it again.
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
"""The attribute of a network that lists, as JSON-able dicts, which blocks came and went."""


class Skip(nn.Module):
    """What a removed block leaves: it gives its first argument.

    Args:
        num_others: how many further outputs the block had; they are None now. None means that it
            gave a tensor and no tuple.
    """

    def __init__(self, num_others: int | None = None) -> None:
        super().__init__()
        self._num_others = num_others

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        return first if self._num_others is None else (first, *(None,) * self._num_others)


def take_out(
    model: nn.Module,
    name: str,
    num_others: int | None,
    optimizers: Sequence[Optimizer],
    log: Transaction,
) -> None:
    """Put a `Skip` in a block's place; optimizers forget its parameters.

    Args:
        model: the network.
        name: the block.
        num_others: how many outputs it has beside the first; see `Skip`.
        optimizers: what trains the network.
        log: where to note what to put back.
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
    """Copies of some modules as one block."""
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
    """Put a block behind another one of the same `nn.Sequential` or `nn.ModuleList`.

    Its parameters join those that they are copies of: in the optimizers and in their masks.

    Args:
        model: the network.
        after: the block that it comes after.
        block: the new one, as `copied` made it.
        like: what it is a copy of.
        optimizers: what trains the network.
        log: where to note what to put back.
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
    """Do once more what another network's history says.

    Raises:
        EditError: this network has no place for it.
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
    """The module that holds a module, and what it calls it."""
    parent, _, key = name.rpartition(".")
    return model.get_submodule(parent), key
