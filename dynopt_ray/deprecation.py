"""Names that were renamed: the old ones keep working for one version, with a warning."""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def deprecated_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that still knows old names.

    Args:
        module: its `__name__`.
        renamed: old name -> new name; the module has the new one.

    Example:
        >>> from dynopt_ray import training
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     training.Population is training.PopulationBasedRate
        True
        >>> caught[0].category.__name__
        'DeprecationWarning'
    """

    def get(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now called {renamed[name]}; the old name goes with version 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[module], renamed[name])

    return get
