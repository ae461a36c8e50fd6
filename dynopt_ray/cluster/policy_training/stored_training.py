"""Store the state of a training run on disk, without pickle, completely or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynopt_ray.errors import CheckpointError, described
from dynopt_ray.storage import DAMAGE_ERRORS, read_state, write_state

_KIND = "policy training"
_ARRAY_DTYPES = (np.float32, np.float64, np.int64, np.int8, np.bool_)


def write_training(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Save the state from which training can continue.

    Raises:
        CheckpointError: the state could not be written; what `path` held before is still there.
    """
    write_state(path, {"settings": _plain(settings), "state": _plain(state)}, kind=_KIND)


def read_training(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load the state that `write_training` saved.

    Raises:
        CheckpointError: the file is missing, truncated or altered; or it belongs to a run with
            other settings, of which the message names the first.
    """
    saved = read_state(path, kind=_KIND)
    wanted = _plain(settings)
    if saved.keys() != {"settings", "state"} or not isinstance(saved["settings"], dict):
        raise CheckpointError(f"{path} does not hold a training run")
    for name in sorted(wanted.keys() | saved["settings"].keys()):
        old, new = saved["settings"].get(name), wanted.get(name)
        if _differ(old, new):
            raise CheckpointError(
                f"{path} belongs to a run with {name} = {old!r:.200}, not {new!r}; use the same "
                f"settings to continue it, or another directory to start a new run"
            )
    try:
        return dict(_restored(saved["state"]))
    except DAMAGE_ERRORS as error:
        raise CheckpointError(f"{path} has been altered: {described(error):.300}") from error


def _differ(old: Any, new: Any) -> bool:
    try:
        return bool(old != new)
    except RuntimeError:  # there are tensors among the saved settings
        return True


def _plain(value: Any) -> Any:
    """Convert arrays to tensors, tuples to lists and integer keys to text, for `write_state`."""
    if isinstance(value, Mapping):
        return {
            f"#{key}" if isinstance(key, int) else key: _plain(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype not in _ARRAY_DTYPES:
        raise CheckpointError(f"an array of {array.dtype} cannot be saved with a training run")
    return torch.from_numpy(np.ascontiguousarray(array))


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            int(key[1:]) if key.startswith("#") else key: _restored(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value
