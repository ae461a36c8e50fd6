"""Save state (numbers, strings and tensors) in one file, atomically and without pickle."""

import contextlib
import glob
import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dynopt_ray.errors import CheckpointError

_VERSION = 1
_TENSOR = "$tensor"
# A single metadata key: safetensors writes several keys in random order, but equal states must
# give equal bytes.
_KEY = "dynopt_ray"
DAMAGE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""The errors that reading a damaged or altered state may raise."""


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any], *, kind: str) -> None:
    """Write nested dicts and lists of JSON-able values and tensors to one file.

    The file is a plain safetensors file. Its metadata hold everything that is not a tensor, as
    JSON, and a SHA-256 of the whole state. It is written to a temporary file next to `path`, synced
    and renamed, so `path` keeps its previous content after a crash or with a full disk.

    Args:
        path: the file to write.
        state: the state to write. Tensors may share memory; tuples are read back as lists.
        kind: the kind of object that the state belongs to ("network", "learner", "policy"). It
            is checked on reading.

    Raises:
        CheckpointError: a value is neither JSON-able nor a tensor, a key is not a string, or
            writing failed.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_without_tensors(state, "state", tensors))
    head = {"kind": kind, "version": _VERSION, "sha256": _digest(tree, tensors), "state": tree}

    def write(temporary: Path) -> None:
        safetensors.torch.save_file(tensors, temporary, {_KEY: json.dumps(head)})

    try:
        replace_file(path, write)
    except (OSError, safetensors.SafetensorError) as error:
        kept = "the previous file is still valid" if Path(path).exists() else "there is none yet"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {kind} {path}: {reason}; {kept}") from error


def read_state(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """Read the state that `write_state` wrote, with tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            head = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"cannot read {kind} {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, *DAMAGE_ERRORS) as error:
        raise CheckpointError(
            f"{path} is truncated, or not the file of a {kind} at all ({error}); use an older one"
        ) from error
    if head is None:
        raise CheckpointError(f"{path} is a safetensors file, but not one that dynopt_ray wrote")
    try:
        metadata = json.loads(head)
        found = {key: metadata[key] for key in ("kind", "version", "sha256", "state")}
        digest = _digest(found["state"], tensors)
    except DAMAGE_ERRORS as error:
        raise CheckpointError(
            f"{path} has been altered: its metadata are damaged ({type(error).__name__}: {error})"
        ) from error
    if found["kind"] != kind:
        raise CheckpointError(f"{path} holds a {found['kind']}, but a {kind} is needed")
    if found["version"] != _VERSION:
        raise CheckpointError(
            f"{path} has version {found['version']}; this release reads version {_VERSION}"
        )
    if digest != found["sha256"]:
        raise CheckpointError(
            f"{path} has been altered: its checksum does not match; use an older one"
        )
    try:
        return dict(_with_tensors(json.loads(found["state"]), tensors))
    except DAMAGE_ERRORS as error:
        raise CheckpointError(f"{path} has been altered: {error}") from error


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file next to `path`, then sync it and rename it to `path`.

    Temporary files that processes of this machine left behind when they were killed are removed.

    Raises:
        OSError: the file could not be written; `path` still has its previous content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    remove_temporaries(path, only_dead=True)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove_temporaries(path: str | os.PathLike[str], *, only_dead: bool = False) -> None:
    """Remove temporary files from which `replace_file` did not get to renaming.

    Args:
        path: the file that they were to replace.
        only_dead: whether to leave alone the files of processes that may still be running, on this
            machine or on another. Otherwise no process may be writing `path`.
    """
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        *_, host, process = temporary.name.removesuffix(".tmp").rsplit(".", 2)
        if only_dead and (host != _host() or _is_running(process)):
            continue
        with contextlib.suppress(OSError):  # left-over files only take up space
            temporary.unlink()


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_running(process: str) -> bool:
    """Whether a process of this machine, given by its number, may be running."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True  # it belongs to another user
    return True


def sync_directory(directory: Path) -> None:
    """Make renames and new files in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while place in tensors:  # {"a.b": …} and {"a": {"b": …}} in one state
            place += "'"
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == _TENSOR:
                raise CheckpointError(
                    f"{place} has the key {key!r}; keys of saved state must be strings, and "
                    "'$tensor' is reserved"
                )
        return {k: _without_tensors(v, f"{place}.{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(v, f"{place}.{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{place} is a {type(value).__name__}; saved state holds numbers, strings, lists, dicts "
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
