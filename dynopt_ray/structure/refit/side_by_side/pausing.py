"""Functions that can pause in the middle, although those that they call know nothing of it.

A paused function keeps its whole stack, so each runs in a thread of its own. Only one thread runs
at a time: the caller waits until the function pauses, ends or fails.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from dynopt_ray.errors import EditError
from dynopt_ray.structure.preserve import ThreadState

Value = TypeVar("Value")


class Stopped(BaseException):
    """Raised inside a paused function that is not to be continued."""


class Pausable(Generic[Value]):
    """A function that runs in turns, with the caller's settings of torch.

    Args:
        body: the function; it gets this object, whose `check` it should call often.
        settings: the settings of torch to run it with.

    Attributes:
        ended: whether the function has returned or failed.
    """

    def __init__(self, body: Callable[["Pausable[Value]"], None], settings: ThreadState) -> None:
        self.ended = False
        self._body = body
        self._settings = settings
        self._begun = False
        self._stopping = False
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Value | BaseException | None] = queue.SimpleQueue()
        # A daemon, so that a function that cannot be stopped does not keep the process alive.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def resume(self) -> Value | None:
        """Continue until the function pauses, and return what it passes to `pause`.

        Returns:
            None if the function has returned.

        Raises:
            EditError: no thread can be started.
            BaseException: what the function raised.
        """
        if not self._begun:
            self._start()
            self._begun = True
        self._turns.put(None)
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> None:
        """End the function where it is, and wait until it has ended. May be called repeatedly."""
        self._stopping = True
        # If Ctrl-C interrupted the start of the thread, it may be running, but it does nothing
        # except end.
        self._turns.put(None)
        if self._begun:
            self._thread.join()

    def pause(self, value: Value) -> None:
        """Called by the function: hand a value to the caller and wait to be continued."""
        self._results.put(value)
        self._turns.get()
        self.check()

    def check(self) -> None:
        """Called by the function: end it if the caller was interrupted.

        Raises:
            Stopped: the function has to end.
        """
        if self._stopping:
            raise Stopped

    def _start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise EditError(
                f"compensate: {error}, and each batch needs up to three of its own. Pass fewer and "
                "larger batches"
            ) from error

    def _run(self) -> None:
        self._turns.get()
        error: BaseException | None = None
        try:
            self.check()
            self._settings.run(partial(self._body, self))
        except Stopped:
            pass
        except BaseException as raised:
            error = raised
        self.ended = True
        self._results.put(error)
        del error, self._body  # they refer to what the function kept
