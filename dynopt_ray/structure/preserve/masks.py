"""Masks: weights held at zero through training, on plain parameters.

A mask belongs to the parameter object. A gradient hook keeps masked gradients at zero, so no
optimizer state builds up. A hook after every step of any optimizer sets masked weights to zero
again, whatever the optimizer did to them (momentum, weight decay, noise). `state_dict` contains
neither masks nor hooks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary


class _KeepZero:
    """A hook that keeps masked entries of a gradient at zero."""

    def __init__(self, keep: Tensor) -> None:
        self._keep = keep

    def __call__(self, gradient: Tensor) -> Tensor:
        if self._keep.device != gradient.device:  # the network was moved
            self._keep = self._keep.to(gradient.device)
        return gradient * self._keep.to(gradient.dtype)


_held: Any = WeakTensorKeyDictionary()


def mask_of(parameter: Tensor) -> Tensor | None:
    """Return a parameter's bool mask (False is held at zero), or None if it has none.

    The mask is on the parameter's device, also after the network was moved.
    """
    keep: Tensor | None = _held.get(parameter)
    if keep is not None and keep.device != parameter.device:
        _held[parameter] = keep = keep.to(parameter.device)
    return keep


def set_mask(parameter: Tensor, keep: Tensor | None) -> None:
    """Replace a parameter's mask; None removes it. Does not touch the weights themselves."""
    note_mask(parameter, keep)
    # Find hooks by their class: an interrupt could lose the handle of a hook just registered.
    hooks = parameter._backward_hooks or {}
    for key in [key for key, hook in hooks.items() if isinstance(hook, _KeepZero)]:
        del hooks[key]
    if keep is not None and parameter.requires_grad:
        register: Any = parameter.register_hook  # torch does not annotate it
        register(_KeepZero(keep))


def note_mask(parameter: Tensor, keep: Tensor | None) -> None:
    """Record a parameter's mask without registering the hook on its gradient."""
    if keep is None:
        _held.pop(parameter, None)
    else:
        _held[parameter] = keep


def _reapply(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if not len(_held):
        return
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                keep = mask_of(parameter)
                if keep is not None:
                    parameter.masked_fill_(~keep, 0)


# Registered for all optimizers, also those created later: none may revive a masked weight.
register_optimizer_step_post_hook(_reapply)


def masked_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of all masked parameters of a network, by parameter name."""
    found = {name: mask_of(parameter) for name, parameter in model.named_parameters()}
    return {name: keep for name, keep in found.items() if keep is not None}


def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give a network the masks that `masked_parameters` returned for one of the same parameters."""
    for name, parameter in model.named_parameters():
        set_mask(parameter, masks.get(name))
