"""Ctrl-C and SIGTERM end a command once and cleanly, whenever they come."""

import atexit
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 15.0
_LOOK_AGAIN_S = 0.05


class Interrupts:
    """Notes the signals that ask a process to end.

    The first raises KeyboardInterrupt in the main thread. Those that follow while the process
    is ending are ignored for 15 seconds: they would only break what cleans up. An import that is
    going on is let finish first, for as long: torch's own modules abort the process when they
    are interrupted while they load.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    @property
    def exit_code(self) -> int | None:
        """What shells expect after such a signal (130, 143), or None without one.

        An interrupt during an import may surface as any error of the module's; that it came is
        the reason all the same.
        """
        return None if self._first is None else 128 + self._first[0]

    def raise_first(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        if self._first is None:
            self._first = (signum, time.monotonic())
        elif time.monotonic() - self._first[1] < _PATIENCE_S:
            return
        self._raise(signum, frame)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        """Raise now, or look again soon while the main thread imports."""
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
        """Handle both signals in a block; one that the process ignores stays ignored.

        After one came they are handled to the end of the process, which is near.
        """
        # What is registered first runs last, when nothing is left that would have to be ended.
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
        """Python gives up its handlers before it ends; a late signal would decide how it did."""
        if self._first is not None:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame runs within an import statement."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
