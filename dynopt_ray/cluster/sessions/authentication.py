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

_MODE = "RAY_AUTH_MODE"


def token_file() -> Path:
    """Return the file that Ray reads the token from if no environment variable gives it."""
    return Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether Ray would find a token."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or token_file().exists()


def check_token() -> None:
    """Refuse to start a cluster for which no token could be made. Write nothing.

    Raises:
        ClusterError: there is no token, and no file can be made in the home directory.
    """
    if os.environ.get(_MODE, "token") != "token" or has_token():
        return
    place = next(path for path in token_file().parents if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ClusterError(_no_token(f"{token_file()} cannot be made in {place}"))


def _no_token(reason: str) -> str:
    return (
        f"a cluster on this machine needs a token, but {reason}; set HOME to a directory that can "
        "be written, RAY_AUTH_TOKEN_PATH to the file of a token, or RAY_AUTH_TOKEN to a token"
    )


def make_token(path: Path) -> None:
    """Write a new token unless there is one, and make the file readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Ray itself creates this file so that everybody can read it.
        path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def use_token(*, starting: bool) -> None:
    """Turn on token authentication in this process and in the processes that it starts.

    If RAY_AUTH_MODE is already set to another mode, that is the user's choice and is kept.

    Args:
        starting: whether a cluster is about to be started. If so, a missing token is made.
            Joining a cluster needs the token of that cluster, so authentication stays off if
            there is none.
    """
    if os.environ.get(_MODE, "token") != "token":
        return
    if token_file().exists() or (starting and not has_token()):
        try:
            make_token(token_file())
        except OSError as error:
            reason = f"{token_file()} cannot be written: {error.strerror}"
            raise ClusterError(_no_token(reason)) from error
    if not has_token():
        return
    os.environ[_MODE] = "token"
    # Ray read the mode and the token when it was imported. If they are not read again, its servers
    # end because they have no token, and `ray.init` waits 30 s for them.
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
