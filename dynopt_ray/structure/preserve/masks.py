"""Masks: weights held at zero through training, on plain parameters.

A mask belongs to the parameter object. A gradient hook keeps masked gradients at zero, so no
optimizer state builds up, and a hook after every step of any optimizer sets masked weights to zero
again whatever the optimizer did (momentum, weight decay, noise). `state_dict` never shows any of
it.
"""

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
        return gradient * self._keep.to(gradient.dtype)


_held: Any = WeakTensorKeyDictionary()


def mask_of(parameter: Tensor) -> Tensor | None:
    """The bool mask of a parameter (False is held at zero), or None if it has none."""
    keep: Tensor | None = _held.get(parameter)
    return keep


def set_mask(parameter: Tensor, keep: Tensor | None) -> None:
    """Replace a parameter's mask; None removes it. Does not touch the weights themselves."""
    note_mask(parameter, keep)
    # Found by what they are: a handle might be lost between their making and its keeping.
    hooks = parameter._backward_hooks or {}
    for key in [key for key, hook in hooks.items() if isinstance(hook, _KeepZero)]:
        del hooks[key]
    if keep is not None and parameter.requires_grad:
        register: Any = parameter.register_hook  # torch leaves it without types
        register(_KeepZero(keep))


def note_mask(parameter: Tensor, keep: Tensor | None) -> None:
    """Note a parameter's mask, without the hook on its gradient."""
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


# For all optimizers, also those made later: whoever trains a masked weight must not revive it.
register_optimizer_step_post_hook(_reapply)


def masked_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The masks of all masked parameters of a network, by parameter name."""
    found = {name: mask_of(parameter) for name, parameter in model.named_parameters()}
    return {name: keep for name, keep in found.items() if keep is not None}
