"""Ctrl-C and SIGTERM end a command once and cleanly, whenever they come."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 15.0


class Interrupts:
    """Notes the signals that ask a process to end.

    The first raises KeyboardInterrupt in the main thread. Those that follow while the process
    is ending are ignored for 15 seconds: they would only break what cleans up.
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
        del frame
        if self._first is None:
            self._first = (signum, time.monotonic())
        elif time.monotonic() - self._first[1] < _PATIENCE_S:
            return
        raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle both signals in a block; one that the process ignores stays ignored.

        After one came they are handled to the end of the process, which is near.
        """
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
