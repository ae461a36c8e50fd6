"""Call `ray.init`, and correct how it handles signals, addresses and the environment."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants, utils

from dynopt_ray.errors import ClusterError


def init_ray(**settings: Any) -> None:
    """Call `ray.init` without output, and keep this process's own handler of SIGTERM.

    Raises:
        ClusterError: Ray does not start, or the cluster cannot be joined.
    """
    try:
        with _own_sigterm():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as e:
        if settings.get("address") == "local":
            raise ClusterError(f"Ray could not be started on this machine: {e}") from e
        raise ClusterError(
            f"could not join a cluster at {settings['address']}: {e}. If one runs there, it has "
            "another token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) or another "
            f"version of Ray than {ray.__version__}"
        ) from e


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's handler of SIGTERM.

    `ray.init` sets a handler that calls `sys.exit` at once. Ray's core then replaces it with one
    that dumps the stack and aborts. Either would bypass this process's own handler, so it is set
    again as soon as the core is made. A signal in these tenths of a second ends the process with a
    dump of the stack.
    """
    raylet: Any = ray._raylet
    in_main = threading.current_thread() is threading.main_thread()
    handler, set_by_ray = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    make_core = raylet.CoreWorker

    def make_core_only(*arguments: Any, **settings: Any) -> Any:
        try:
            return make_core(*arguments, **settings)
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, handler)

    utils.set_sigterm_handler = lambda _: None
    raylet.CoreWorker = make_core_only
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_by_ray
        raylet.CoreWorker = make_core
        if in_main:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def loopback_only(enabled: bool) -> Iterator[None]:
    """Make Ray's servers listen on 127.0.0.1 only, if enabled.

    On systems on which Ray supports clusters, it replaces a loopback address by the machine's
    address and then listens on every interface. A switch that Ray has for macOS keeps 127.0.0.1.
    """
    if not enabled:
        yield
        return
    constant = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # Ray's servers read this variable. This process has read it already, into the constant.
        with ray_environment("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant


@contextmanager
def ray_environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the duration of a `with` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
