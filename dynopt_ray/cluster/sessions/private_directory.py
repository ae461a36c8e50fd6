"""A directory that keeps what Ray writes away from other users of the machine.

Ray lets every user read, write and rename its directory and the files below it: its sockets, its
logs and the code that it ships. So a session gives it a directory within a new one that only its
own user may enter.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynopt_ray.errors import ClusterError

_PREFIX = "ray-"
_LOCK = "in_use"
_INNER = "r"
_RANDOM = 8  # the number of random characters that `mkdtemp` appends
_SURELY_LOCKED_S = 60.0  # a directory of this age has been locked, or will never be
# Longest path of a socket on Linux, and what Ray appends to its directory: the name of the session
# with a process id of seven digits, and that of a socket.
_LONGEST_SOCKET = 107
_SOCKET = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def place_for_ray() -> Path:
    """Return the directory in which Ray's directory is made: RAY_TMPDIR, or that of the system."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def check_length(place: Path) -> None:
    """Refuse a place for Ray's directory whose path is too long for Ray's sockets.

    Raises:
        ClusterError: the path is too long.
    """
    longest = _LONGEST_SOCKET - _SOCKET - len(f"/{_PREFIX}/{_INNER}") - _RANDOM
    length = len(os.fsencode(place.absolute()))
    if length > longest:
        raise ClusterError(
            f"Ray's own files would lie in {place}, whose path of {length} characters is too long "
            f"for Ray's sockets; set RAY_TMPDIR to a directory whose path has at most {longest} "
            "characters, e.g. /tmp"
        )


@contextmanager
def private_directory() -> Iterator[Path]:
    """Make a directory that only this user can reach, and remove it at the end of the block.

    Directories that killed processes of this user left behind are removed, too.

    Raises:
        ClusterError: the directory cannot be made.
    """
    place = place_for_ray()
    check_length(place)
    _remove_abandoned(place)
    try:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place.absolute()))
        (directory / _INNER).mkdir()
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ClusterError(
            f"cannot make a directory for Ray's own files in {place}: {error.strerror}; set "
            "RAY_TMPDIR to a directory that can be written"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory / _INNER
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(place: Path) -> None:
    for directory in place.glob(f"{_PREFIX}{'?' * _RANDOM}"):
        # A directory of another user, or one that is just being made or removed, is left alone.
        with contextlib.suppress(OSError):
            facts = directory.lstat()
            is_old = time.time() - facts.st_mtime > _SURELY_LOCKED_S
            if facts.st_uid != os.geteuid() or not stat.S_ISDIR(facts.st_mode) or not is_old:
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is in use
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)
