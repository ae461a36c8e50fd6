"""Snapshots: a learner's state in one file, without pickle, whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dynopt_ray.errors import CheckpointError

if TYPE_CHECKING:
    from dynopt_ray.online.learner import OnlineLearner

_FORMAT = "dynopt_ray.online 1"
_TENSOR = "$tensor"
# One key only: safetensors writes several in random order, and equal states shall give equal bytes.
_KEY = "dynopt_ray"


def save(path: str | os.PathLike[str], learner: "OnlineLearner") -> None:
    """Write a learner's whole state to `path`.

    Raises:
        CheckpointError: it could not be written; what `path` held before is still there.
    """
    write_snapshot(path, learner.state_dict())


def load(path: str | os.PathLike[str], learner: "OnlineLearner") -> None:
    """Put the state in `path` into a learner that is built as the saved one was.

    Raises:
        CheckpointError: the file is missing, truncated, altered or foreign, or is the state of
            another kind of learner; the learner is as it was.
    """
    learner.load_state_dict(read_snapshot(path))


def write_snapshot(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of JSON-able values and tensors to one file.

    The file is a plain safetensors file with the rest as JSON in its metadata, beside a SHA-256
    of everything. It is written next to `path`, synced and renamed, so a crash or a full disk
    leaves what `path` held before.

    Raises:
        CheckpointError: a value is neither JSON-able nor a tensor, or writing failed.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_without_tensors(state, "state", tensors))
    head = json.dumps({"format": _FORMAT, "sha256": _digest(tree, tensors), "state": tree})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        data = safetensors.torch.save(tensors, {_KEY: head})
        _write_synced(temporary, data)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "the previous snapshot is still valid" if path.exists() else "there is none yet"
        raise CheckpointError(f"cannot write snapshot {path}: {error.strerror}; {kept}") from error


def read_snapshot(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_snapshot` wrote; tuples come back as lists, tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, altered or foreign.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            head = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"cannot read snapshot {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"snapshot {path} is truncated or not a snapshot at all ({error}); use an older one"
        ) from error
    if head is None:
        raise CheckpointError(f"{path} is a safetensors file, but not a snapshot of a learner")
    try:
        metadata = json.loads(head)
        form, tree, checksum = (metadata[key] for key in ("format", "state", "sha256"))
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"snapshot {path} has been altered: its head is damaged") from None
    if form != _FORMAT:
        raise CheckpointError(f"snapshot {path} is of format {form!r}; {_FORMAT!r} is wanted")
    if _digest(tree, tensors) != checksum:
        raise CheckpointError(
            f"snapshot {path} has been altered: its checksum does not match; use an older one"
        )
    state: dict[str, Any] = _with_tensors(json.loads(tree), tensors)
    return state


def sync_directory(directory: Path) -> None:
    """Make renames and new files in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == _TENSOR:
                raise CheckpointError(f"{place} has the key {key!r}; a snapshot needs other keys")
        return {k: _without_tensors(v, f"{place}.{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(v, f"{place}.{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{place} is a {type(value).__name__}; a snapshot holds numbers, strings, lists, dicts "
        "and tensors only, because anything else would need pickle to load"
    )


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _with_tensors(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_tensors(entry, tensors) for entry in value]
    return value


def _digest(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the JSON and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
