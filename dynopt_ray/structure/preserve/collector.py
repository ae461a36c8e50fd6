"""A context that pauses the garbage collector."""

import gc


class CollectorPaused:
    """Pauses garbage collection while the context is active.

    A trace makes many small long-lived objects, which triggers collections of all objects of the
    process. With torch loaded, these take longer than the trace itself. Use it through `within`,
    so that Ctrl-C cannot leave the collector off.
    """

    def __init__(self) -> None:
        self._was_on = gc.isenabled()

    def __enter__(self) -> None:
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()
