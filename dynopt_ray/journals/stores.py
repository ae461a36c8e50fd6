"""Places for small files that are written whole or not at all: a directory, or one under a URI."""

import contextlib
import uuid
from pathlib import Path
from typing import Any, Protocol

from dynopt_ray.errors import CheckpointError
from dynopt_ray.storage import replace_file


class Store(Protocol):
    """Files by name, such as "trials/00012/network.safetensors". Must be picklable."""

    @property
    def name(self) -> str:
        """What messages call the place."""

    def put(self, name: str, content: bytes) -> None:
        """Write a file, in place of an earlier one of that name.

        Raises:
            CheckpointError: it could not be written; an earlier one is still valid.
        """

    def get(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            CheckpointError: it does not exist or cannot be read.
        """

    def names(self, directory: str) -> frozenset[str]:
        """Return the names of the files in a directory; none if it does not exist.

        Raises:
            CheckpointError: the place cannot be reached.
        """

    def names_below(self, directory: str) -> frozenset[str]:
        """Return the names of the files in a directory and in all directories within it.

        Raises:
            CheckpointError: the place cannot be reached.
        """

    def delete(self, name: str) -> None:
        """Delete a file; do nothing if it does not exist.

        Raises:
            CheckpointError: the place cannot be reached.
        """


def store_at(directory: str) -> Store:
    """Return the store in a directory, or under a URI such as s3://bucket/run.

    Raises:
        CheckpointError: no file system knows the URI.
    """
    return UriStore(directory) if "://" in directory else LocalStore(Path(directory).absolute())


class LocalStore:
    """A store in a directory of a file system.

    Args:
        root: the directory; it is created with the first file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """The path of the directory."""
        return str(self._root)

    def put(self, name: str, content: bytes) -> None:
        """See `Store`."""
        path = self._root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda temporary: _write(temporary, content))
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error

    def get(self, name: str) -> bytes:
        """See `Store`."""
        path = self._root / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error

    def names(self, directory: str) -> frozenset[str]:
        """See `Store`."""
        found = (self._root / directory).glob("[!.]*")
        return frozenset(f"{directory}/{path.name}" for path in found if path.is_file())

    def names_below(self, directory: str) -> frozenset[str]:
        """See `Store`."""
        found = (self._root / directory).rglob("[!.]*")
        return frozenset(
            path.relative_to(self._root).as_posix() for path in found if path.is_file()
        )

    def delete(self, name: str) -> None:
        """See `Store`."""
        path = self._root / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files are left in it
            path.parent.rmdir()


class UriStore:
    """A store under a URI that `pyarrow.fs` can open. Object stores write whole files.

    Args:
        uri: a directory, e.g. s3://bucket/run.

    Raises:
        CheckpointError: no file system knows the URI.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._open()

    @property
    def name(self) -> str:
        """The URI."""
        return self._uri

    def put(self, name: str, content: bytes) -> None:
        """See `Store`."""
        path = f"{self._root}/{name}"
        is_local = self._files.type_name == "local"
        written = f"{path}.{uuid.uuid4().hex}.tmp" if is_local else path
        try:
            if is_local:
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(written) as stream:
                stream.write(content)
            if is_local:
                self._files.move(written, path)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._place(name)}: {error}") from error

    def get(self, name: str) -> bytes:
        """See `Store`."""
        try:
            with self._files.open_input_stream(f"{self._root}/{name}") as stream:
                return bytes(stream.read())
        except OSError as error:
            raise CheckpointError(f"cannot read {self._place(name)}: {error}") from error

    def names(self, directory: str) -> frozenset[str]:
        """See `Store`."""
        return self._names(directory, recursive=False)

    def names_below(self, directory: str) -> frozenset[str]:
        """See `Store`."""
        return self._names(directory, recursive=True)

    def delete(self, name: str) -> None:
        """See `Store`."""
        try:
            self._files.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise CheckpointError(f"cannot delete {self._place(name)}: {error}") from error

    def _names(self, directory: str, *, recursive: bool) -> frozenset[str]:
        from pyarrow import fs

        selector = fs.FileSelector(
            f"{self._root}/{directory}", allow_not_found=True, recursive=recursive
        )
        try:
            found = [info.path for info in self._files.get_file_info(selector) if info.is_file]
        except OSError as error:
            raise CheckpointError(f"cannot read {self._place(directory)}: {error}") from error
        return frozenset(
            path.removeprefix(f"{self._root}/") for path in found if not path.endswith(".tmp")
        )

    def __getstate__(self) -> str:
        """Return the URI: an open file system does not travel to other processes."""
        return self._uri

    def __setstate__(self, uri: str) -> None:
        self._uri = uri
        self._open()

    def _place(self, name: str) -> str:
        """Return the URI of a file, for messages."""
        uri, question_mark, query = self._uri.partition("?")
        return f"{uri}/{name}{question_mark}{query}"

    def _open(self) -> None:
        from pyarrow import fs

        try:
            opened: tuple[Any, str] = fs.FileSystem.from_uri(self._uri)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot open {self._uri}: {error}") from error
        self._files, self._root = opened
        if not self._root.strip("/"):
            raise CheckpointError(f"cannot open {self._uri}: it names no bucket or directory")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
