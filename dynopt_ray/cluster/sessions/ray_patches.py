"""What `ray.init` needs around it: signals, addresses and the environment."""

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
    """`ray.init`, quietly, with this process's own handling of SIGTERM kept.

    Raises:
        ClusterError: Ray does not start, or no cluster answers.
    """
    try:
        with _own_sigterm():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as e:
        if "address" not in settings:
            raise ClusterError(f"Ray could not be started on this machine: {e}") from e
        raise ClusterError(
            f"could not join a cluster at {settings['address']}: {e}. If one runs there, it has "
            "another token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) or another "
            f"version of Ray than {ray.__version__}"
        ) from e


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's handler of SIGTERM.

    Ray's own exits from wherever it is, as if nothing had to be ended; its core's, which takes
    over in the end, dumps a stack and aborts.
    """
    handler, set_by_ray = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_by_ray
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def loopback_only(enabled: bool) -> Iterator[None]:
    """Let Ray's servers listen on 127.0.0.1 alone.

    Ray replaces a loopback address by the machine's own wherever it supports clusters, and then
    listens on every interface. The switch that it has for macOS keeps 127.0.0.1.
    """
    if not enabled:
        yield
        return
    constant = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # The servers read the variable, this process has read it already.
        with ray_environment("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant


@contextmanager
def ray_environment(name: str, value: str) -> Iterator[None]:
    """An environment variable, set for the length of a `with` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
