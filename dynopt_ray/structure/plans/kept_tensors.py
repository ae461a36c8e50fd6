"""Tensors that modules keep from one pass to the next have the old sizes after an edit."""

import warnings
from collections.abc import Collection

from torch import nn

from dynopt_ray.structure.network import Network
from dynopt_ray.structure.plans.exactness import output_change, outputs_of
from dynopt_ray.structure.preserve import Cache, Transaction, emptied, has_tensors, value_of

_TO_CALLER_OF_APPLY = 8


def drop_kept(network: Network, transaction: Transaction) -> None:
    """Remove what modules keep of an earlier pass; the next pass makes it at the new size.

    A state that a recurrent network carries from batch to batch is lost with it.

    Warns:
        UserWarning: the next output depends on what is removed.
    """
    kept = {c: v for c in network.caches if has_tensors(v := value_of(c))}
    if not kept:
        return
    model, inputs = network.model, network.arguments.example_inputs
    before = outputs_of(model, inputs)
    for cache, value in kept.items():
        empty = emptied(value) if isinstance(value, dict | list) else network.caches[cache]
        transaction.set_kept(cache, empty)
    after = outputs_of(model, inputs)
    if after is None:
        return
    # A state of another batch size stops the pass.
    if before is None or output_change(before, after, network.tensors()):
        warnings.warn(
            f"the edit removes the state of earlier inputs that {_names(model, kept)} held, "
            "because it may have an old width. The next pass starts from the initial state",
            stacklevel=_TO_CALLER_OF_APPLY,
        )


def _names(model: nn.Module, caches: Collection[Cache]) -> str:
    places = {module: name for name, module in model.named_modules()}
    return ", ".join(
        repr(f"{places[owner]}.{name}".lstrip("."))
        for owner, name in caches
        if isinstance(owner, nn.Module)
    )
