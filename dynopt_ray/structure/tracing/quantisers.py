"""The observers and fake quantisers that torch puts into a network to prepare it for quantisation.

An observer returns its input as it is and keeps statistics of it. A fake quantiser rounds its input
with a scale that it computes from such statistics. Neither is imported unless the network has one.
"""

import sys
from typing import Any

from torch import Tensor, nn


def is_quantiser(module: nn.Module) -> bool:
    """Return whether a module is an observer or a fake quantiser of `torch.ao.quantization`."""
    return _is("observer", "ObserverBase", module) or is_fake_quantiser(module)


def is_fake_quantiser(module: nn.Module | None) -> bool:
    """Return whether a module is a fake quantiser of `torch.ao.quantization`."""
    return _is("fake_quantize", "FakeQuantizeBase", module)


def watches_only(module: nn.Module | None) -> bool:
    """Return whether a module is an observer without statistics per channel.

    No units lie along its statistics, and its result is its input. So its operations, some of which
    sort or count values, say nothing about units.
    """
    return _is("observer", "ObserverBase", module) and not hasattr(module, "ch_axis")


def observes(module: nn.Module | None) -> bool:
    """Return whether a fake quantiser computes its scale anew in each pass."""
    return is_fake_quantiser(module) and is_on(getattr(module, "observer_enabled", True))


def is_on(switch: Any) -> bool:
    """Return whether a switch of a fake quantiser is on; without its value, it counts as on."""
    return True if isinstance(switch, Tensor) and switch.is_meta else bool(switch)


def _is(file: str, name: str, module: nn.Module | None) -> bool:
    loaded: Any = sys.modules.get(f"torch.ao.quantization.{file}")
    return loaded is not None and isinstance(module, getattr(loaded, name))
