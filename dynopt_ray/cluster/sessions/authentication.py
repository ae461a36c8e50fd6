"""Token authentication: only who has the token may use a cluster, which runs any code it is sent.

Tokens are not encrypted on their way. On this machine alone that does not matter; beyond it,
use TLS or an isolated network as well.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import ray

_MODE = "RAY_AUTH_MODE"


def token_file() -> Path:
    """Where Ray looks for the token when no environment variable tells."""
    return Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether Ray would find a token."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or token_file().exists()


def make_token(path: Path) -> None:
    """Write a new token that only its owner can read, unless there is one; close it to others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Ray itself makes it readable for everybody.
        path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def use_token(*, starting: bool) -> None:
    """Turn token authentication on in this process and in those it starts.

    A mode that the environment sets already is the user's choice and stays.

    Args:
        starting: make a token where there is none, for a cluster about to be started. To join
            one, the token must be its own, so without one authentication stays off.
    """
    if os.environ.get(_MODE, "token") != "token":
        return
    if token_file().exists() or (starting and not has_token()):
        make_token(token_file())
    if not has_token():
        return
    os.environ[_MODE] = "token"
    # Ray read the mode and the token when it was imported; without this, a mode set later makes
    # its servers die for want of a token, and `ray.init` wait 30 s for them.
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
