"""Switches that layers of torch set once, by their sizes, and that an edit may make wrong."""

import warnings
from collections.abc import Iterable

from torch import nn

from dynopt_ray.structure.preserve.transaction import Transaction


def update_switches(modules: Iterable[nn.Module], log: Transaction) -> None:
    """Switch off what layers of torch no longer support at their present sizes.

    `nn.TransformerEncoder` decides when it is made whether padded inputs become nested tensors, for
    which its attention needs an even number of heads.
    """
    for module in modules:
        if isinstance(module, nn.TransformerEncoder) and _uses_nested_tensors(module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch explains why it switches this off
                now = nn.TransformerEncoder(module.layers[0], num_layers=0)
            if not now.use_nested_tensor:
                log.set_attribute(module, "use_nested_tensor", False)


def _uses_nested_tensors(module: nn.TransformerEncoder) -> bool:
    return len(module.layers) > 0 and getattr(module, "use_nested_tensor", False)
