"""The garbage collector, kept still for a moment."""

import gc


class CollectorPaused:
    """No garbage collection while this context lasts.

    A trace makes many small objects that live on, which sets off collections of everything there
    is: with torch loaded they take longer than the trace. Enter it twice, `with paused, paused:`,
    and Ctrl-C cannot leave the collector off.
    """

    def __init__(self) -> None:
        self._was_on = gc.isenabled()

    def __enter__(self) -> None:
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()
