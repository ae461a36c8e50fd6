"""Values as JSON can hold them, and back."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_FLOAT = "$float"


def plain(value: Any) -> Any:
    """Return nested values without NumPy's types: dicts, lists, numbers and texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return list(value) if _are_floats(value) else [plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def to_json(value: Any) -> Any:
    """Return nested values with NaN and infinities as {"$float": "nan"}, which JSON lacks."""
    return _finite(plain(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        if _are_floats(value) and all(map(math.isfinite, value)):
            return value
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    return value


def _are_floats(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether there are only floats, as in scores of rows: these lists are long."""
    return {*map(type, values)} == {float}


def from_json(value: Any) -> Any:
    """Return what `to_json` was given."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {key: from_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [from_json(one) for one in value]
    return value


def flat_config(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """Flatten a nested configuration: its dotted names are the columns of a table."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}" if prefix else name
        flat.update(flat_config(value, key) if isinstance(value, Mapping) else {key: value})
    return flat
