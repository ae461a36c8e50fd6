"""Parameters that a forward pass itself changes, such as those of a momentum encoder.

A pass that an edit or a measurement needs must leave them as they were. To copy all parameters for
every such pass would take too much memory, so a trace notes which ones its pass has written.
"""

import weakref
from collections.abc import Collection

from torch import nn

_WRITTEN: "weakref.WeakKeyDictionary[nn.Module, frozenset[str]]" = weakref.WeakKeyDictionary()


def note_written(model: nn.Module, parameters: Collection[str]) -> None:
    """Note the parameters that a pass of a network has written; none replaces none."""
    if parameters or model in _WRITTEN:
        _WRITTEN[model] = frozenset(parameters)


def written_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that the passes of a network write."""
    return _WRITTEN.get(model, frozenset())
