"""Masks: weights held at zero through training, on plain parameters.

A mask belongs to the parameter object. A gradient hook keeps masked gradients at zero, so no
optimizer state builds up, and a hook after every step of the optimizer sets masked weights to zero
again whatever the optimizer did (weight decay, noise). `state_dict` never shows any of it.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass
class _Held:
    keep: Tensor
    hook: RemovableHandle | None


_held: Any = WeakTensorKeyDictionary()
_watched: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()


def mask_of(parameter: Tensor) -> Tensor | None:
    """The bool mask of a parameter (False is held at zero), or None if it has none."""
    held = _held.get(parameter)
    return None if held is None else held.keep


def set_mask(parameter: Tensor, keep: Tensor | None) -> None:
    """Replace a parameter's mask; None removes it. Does not touch the weights themselves."""
    held = _held.pop(parameter, None)
    if held is not None and held.hook is not None:
        held.hook.remove()
    if keep is not None:
        hook = None
        if parameter.requires_grad:
            hook = _hook_gradient(parameter, keep)
        _held[parameter] = _Held(keep, hook)


def _hook_gradient(parameter: Tensor, keep: Tensor) -> RemovableHandle:
    register: Any = parameter.register_hook  # torch leaves it without types
    handle: RemovableHandle = register(lambda gradient: gradient * keep.to(gradient.dtype))
    return handle


def watch(optimizer: Optimizer) -> None:
    """Re-apply the masks of an optimizer's parameters after each of its steps."""
    if optimizer not in _watched:
        optimizer.register_step_post_hook(_reapply)
        _watched.add(optimizer)


def _reapply(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                keep = mask_of(parameter)
                if keep is not None:
                    parameter.masked_fill_(~keep, 0)


def masked_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The masks of all masked parameters of a network, by parameter name."""
    found = {name: mask_of(parameter) for name, parameter in model.named_parameters()}
    return {name: keep for name, keep in found.items() if keep is not None}
