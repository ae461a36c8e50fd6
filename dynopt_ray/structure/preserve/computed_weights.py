"""Weights that hooks compute before each forward pass and keep as plain attributes.

`torch.nn.utils.prune` and torch's older `weight_norm` and `spectral_norm` work like this. Between
an edit and the next forward pass, such an attribute would have the old size.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dynopt_ray.structure.preserve.transaction import Transaction


@torch.no_grad()
def recompute_weights(modules: Iterable[nn.Module], log: Transaction) -> None:
    """Compute the weights again that hooks of these modules compute."""
    for module in modules:
        for name, value in _computed(module):
            log.set_attribute(module, name, value)


def _computed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for hook in module._forward_pre_hooks.values():
        known: Any = hook  # torch does not annotate these classes
        if isinstance(hook, BasePruningMethod):
            yield known._tensor_name, known.apply_mask(module)
        elif isinstance(hook, WeightNorm):
            yield known.name, known.compute_weight(module)
        elif isinstance(hook, SpectralNorm):
            yield known.name, known.compute_weight(module, do_power_iteration=False)
