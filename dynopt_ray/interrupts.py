"""End a command once and cleanly on Ctrl-C or SIGTERM, at any time."""

import atexit
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 15.0
_LOOK_AGAIN_S = 0.05


class Interrupts:
    """Handles the signals that ask the process to end.

    The first signal raises KeyboardInterrupt in the main thread. Further signals are ignored for
    15 seconds, because they would interrupt the clean-up. If the main thread is importing a
    module, the handler waits up to 15 seconds for the import to finish: torch's own modules abort
    the process if they are interrupted while loading.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code that shells expect after the signal (130 or 143), or None without a signal.

        An interrupt during an import may surface as any error of the imported module. The exit
        code is that of the signal even then.
        """
        return None if self._first is None else 128 + self._first[0]

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived.

        The exception of the first signal is lost if it is raised where nothing can propagate: in a
        callback from C, or while an object is deleted. Code that goes on after much of that, such
        as the start of Ray, calls this.
        """
        if self._first is not None:
            raise KeyboardInterrupt

    def raise_first(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: raise for the first one, and ignore those that follow soon after."""
        if self._first is None:
            self._first = (signum, time.monotonic())
        elif time.monotonic() - self._first[1] < _PATIENCE_S:
            return
        self._raise(signum, frame)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt now, or check again soon if the main thread is importing."""
        del signum
        assert self._first is not None
        can_wait = hasattr(signal, "setitimer")  # Windows has no timers
        if can_wait and _imports(frame) and time.monotonic() - self._first[1] < _PATIENCE_S:
            signal.signal(signal.SIGALRM, self._raise)
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
            return
        raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle both signals within a block; a signal that the process ignores stays ignored.

        Once a signal has arrived, the handlers stay in place until the process ends.
        """
        # The function that is registered first runs last, when all other clean-up is done.
        atexit.register(self._ignore_more)
        before = {}
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, self.raise_first)
        try:
            yield
        finally:
            if self._first is None:
                for signum, handler in before.items():
                    signal.signal(signum, handler)

    def _ignore_more(self) -> None:
        """Ignore further signals at the end of the process, that of our own timer among them.

        Python removes its signal handlers before it ends, so a late signal would otherwise
        determine the exit code.
        """
        if self._first is not None:
            for name in ("SIGINT", "SIGTERM", "SIGALRM"):
                if hasattr(signal, name):  # Windows has no SIGALRM
                    signal.signal(getattr(signal, name), signal.SIG_IGN)


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame runs within an import statement."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
