"""Save state (numbers, strings and tensors) in one file, atomically and without pickle."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dynopt_ray.errors import CheckpointError, described

_VERSION = 1
_TENSOR = "$tensor"
# A single metadata key: safetensors writes several keys in random order, but equal states must
# give equal bytes.
_KEY = "dynopt_ray"
_SUFFIX = ".tmp"
DAMAGE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)
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
    content = packed_state(state, kind=kind)
    try:
        replace_file(path, lambda temporary: _write_bytes(temporary, content))
    except OSError as error:
        kept = "the previous file is still valid" if Path(path).exists() else "there is none yet"
        raise CheckpointError(
            f"cannot write {kind} {path}: {error.strerror or error}; {kept}"
        ) from error


def packed_state(state: Mapping[str, Any], *, kind: str) -> bytes:
    """Return the content of the file that `write_state` would write.

    Raises:
        CheckpointError: see `write_state`.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_without_tensors(state, "state", tensors))
    head = {"kind": kind, "version": _VERSION, "sha256": _digest(tree, tensors), "state": tree}
    return safetensors.torch.save(tensors, {_KEY: json.dumps(head)})


def unpacked_state(content: bytes, *, kind: str, name: str) -> dict[str, Any]:
    """Return the state in a file's content, with tensors on the CPU.

    Args:
        content: the content.
        kind: the kind of object that the state belongs to.
        name: what messages call the file.

    Raises:
        CheckpointError: the content is truncated, altered, or of another kind.
    """
    head, tensors = _parsed(content, kind, name)
    if head is None:
        raise CheckpointError(f"{name} is a safetensors file, but not one that dynopt_ray wrote")
    try:
        metadata = json.loads(head)
        found = {key: metadata[key] for key in ("kind", "version", "sha256", "state")}
        digest = _digest(found["state"], tensors)
    except DAMAGE_ERRORS as error:
        raise CheckpointError(
            f"{name} has been altered: its metadata are damaged ({described(error):.300})"
        ) from error
    if found["kind"] != kind:
        raise CheckpointError(f"{name} holds a {found['kind']!s:.60}, but a {kind} is needed")
    if found["version"] != _VERSION:
        raise CheckpointError(
            f"{name} has version {found['version']!s:.60}; this release reads version {_VERSION}"
        )
    if digest != found["sha256"]:
        raise CheckpointError(
            f"{name} has been altered: its checksum does not match; use an older one"
        )
    try:
        state = _with_tensors(json.loads(found["state"]), tensors)
        if not isinstance(state, dict) or tensors:
            raise ValueError("tensors and metadata do not belong together")
    except DAMAGE_ERRORS as error:
        raise CheckpointError(f"{name} has been altered: {described(error):.300}") from error
    return state


def read_state(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """Read the state that `write_state` wrote, with tensors on the CPU.

    The tensors own their memory, and the checksum is that of this memory. So the state stays the
    same if the file is overwritten or truncated later.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or of another kind.
    """
    return unpacked_state(_read(path, kind), kind=kind, name=str(path))


def _read(path: str | os.PathLike[str], kind: str) -> bytes:
    """Return the content of a file.

    The file is not mapped into memory. Whoever truncated or overwrote a mapped file would end this
    process or change its tensors.
    """
    try:
        if not Path(path).is_file():  # a pipe or a device may have no end
            os.stat(path)
            raise CheckpointError(f"cannot read {kind} {path}: it is not a file")
        return Path(path).read_bytes()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or described(error)
        raise CheckpointError(f"cannot read {kind} {path}: {reason}") from error


def _parsed(content: bytes, kind: str, name: str) -> tuple[str | None, dict[str, Tensor]]:
    """Return our part of a file's metadata, or None, and its tensors."""
    try:
        tensors = safetensors.torch.load(content)
        num_bytes = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + num_bytes]).get("__metadata__", {})
    except MemoryError as error:
        raise CheckpointError(f"cannot read {kind} {name}: {described(error)}") from error
    except (safetensors.SafetensorError, *DAMAGE_ERRORS) as error:
        raise CheckpointError(
            f"{name} is truncated, or not the file of a {kind} at all ({described(error):.300}); "
            "use an older one"
        ) from error
    return metadata.get(_KEY), tensors


def _write_bytes(path: Path, content: bytes) -> None:
    # `safetensors.torch.save_file` would write to a temporary file of its own, which a killed
    # process leaves behind under a name that nobody recognises.
    path.write_bytes(content)


def replace_file(
    path: str | os.PathLike[str], write: Callable[[Path], object], *, private: bool = True
) -> None:
    """Let `write` fill a temporary file next to `path`, then sync it and rename it to `path`.

    The name of the temporary file cannot be guessed, and it is new: no link that somebody put
    there is followed. Several threads or processes may replace the same file; the last one wins.
    Temporary files that processes left behind when they were killed are removed.

    Args:
        path: the file to replace.
        write: fills the file at the path that it is given.
        private: whether only the owner may read the file. Otherwise the process's umask decides.

    Raises:
        OSError: the file could not be written; `path` still has its previous content.
    """
    _publish(Path(path), write, os.replace, private=private)


def create_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Make a new private file as `replace_file` does, but never in the place of another one.

    Raises:
        FileExistsError: there is a file, also if another process has just made it.
        OSError: the file could not be written.
    """
    _publish(Path(path), write, os.link, private=True)


def _publish(
    path: Path,
    write: Callable[[Path], object],
    publish: Callable[[Path, Path], None],
    *,
    private: bool,
) -> None:
    """Fill a temporary file and give it its name; `publish` is `os.replace` or `os.link`."""
    remove_temporaries(path, only_dead=True)
    temporary, descriptor = _temporary_for(path, 0o600 if private else 0o666)
    try:
        write(temporary)
        os.fsync(descriptor)
        publish(temporary, path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):  # `os.replace` has moved it
            temporary.unlink()
        os.close(descriptor)


def _temporary_for(path: Path, mode: int) -> tuple[Path, int]:
    """Make a new temporary file next to `path` and lock it as long as its descriptor is open.

    The lock tells other processes that the file is still being written. It ends with the process,
    whatever ends it, and unlike the number of a process it cannot be mistaken for another one's.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
        # `mkstemp` does the same, but makes every file private.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        # Without locks on this file system, nobody else can lock the file either, and it is kept.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another process has removed it before it was locked


def remove_temporaries(path: str | os.PathLike[str], *, only_dead: bool = False) -> None:
    """Remove temporary files from which `replace_file` did not get to renaming.

    Args:
        path: the file that they were to replace.
        only_dead: whether to leave alone the files of processes that may still be running, on this
            machine or on another. Otherwise no process may be writing `path`.
    """
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # left-over files only take up space
            if only_dead:
                _remove_unlocked(temporary)
            else:
                temporary.unlink()


def _remove_unlocked(temporary: Path) -> None:
    """Remove a file unless it is locked.

    Raises:
        OSError: it is locked, belongs to another user, or its file system has no locks.
    """
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
    finally:
        os.close(descriptor)


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


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            # Each tensor belongs to one place. Two that shared its memory would change together.
            return tensors.pop(value[_TENSOR])
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
