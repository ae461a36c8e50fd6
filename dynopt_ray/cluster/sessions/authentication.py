"""Token authentication: only those who have a cluster's token may use the cluster.

It is needed because a cluster runs any code that it is sent. Tokens are sent unencrypted. This does
not matter for a cluster that is reachable from this machine only. For any other cluster, use TLS or
an isolated network as well.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import ray

from dynopt_ray.errors import ClusterError
from dynopt_ray.storage import create_file, remove_temporaries

_MODE = "RAY_AUTH_MODE"


def token_file() -> Path:
    """Return the file that Ray reads the token from if no environment variable gives it."""
    return Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether Ray would find a token.

    Raises:
        ClusterError: Ray would read the token from a file that is empty or cannot be read.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _check_token(Path(given))
        return True
    if token_file().exists():
        _check_token(token_file())
        return True
    return False


def _check_token(path: Path) -> None:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ClusterError(f"cannot read the token file {path}: {error}") from error
    if not token:
        raise ClusterError(
            f"the token file {path} is empty, so anybody could guess the token. Restore it; or "
            "end all clusters that use it and delete it, and the next start makes a new one"
        )


def check_token() -> None:
    """Refuse to start a cluster for which no token could be made. Write nothing.

    Raises:
        ClusterError: there is no token, and no file can be made in the home directory.
    """
    if os.environ.get(_MODE, "token") != "token" or has_token():
        return
    place = next(path for path in token_file().parents if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ClusterError(
            f"a cluster on this machine needs a token, but {token_file()} cannot be made in "
            f"{place}; set RAY_AUTH_TOKEN, or HOME to a directory that can be written"
        )


def make_token(path: Path) -> None:
    """Write a new token unless there is one, and make the file readable by its owner only.

    Raises:
        ClusterError: the file cannot be written.
    """

    def write(temporary: Path) -> None:
        temporary.write_text(secrets.token_hex(32))

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            create_file(path, write)
        except FileExistsError:
            # Ray itself creates this file so that everybody can read it.
            path.chmod(0o600)
            remove_temporaries(path, only_dead=True)
    except OSError as error:
        raise ClusterError(
            f"cannot write the token file {path}: {error.strerror}. Set RAY_AUTH_TOKEN, or HOME "
            "to a directory that can be written"
        ) from error


def use_token(*, starting: bool) -> None:
    """Turn on token authentication in this process and in the processes that it starts.

    If RAY_AUTH_MODE is already set to another mode, that is the user's choice and is kept.

    Args:
        starting: whether a cluster is about to be started. If so, a missing token is made.
            Joining a cluster needs the token of that cluster, so authentication stays off if
            there is none.

    Raises:
        ClusterError: the token is empty, or its file cannot be read or written.
    """
    if os.environ.get(_MODE, "token") != "token":
        return
    if token_file().exists() or (starting and not has_token()):
        make_token(token_file())
    if not has_token():
        return
    os.environ[_MODE] = "token"
    # Ray read the mode and the token when it was imported. If they are not read again, its servers
    # end because they have no token, and `ray.init` waits 30 s for them.
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
