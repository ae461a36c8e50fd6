"""Processes that tests start."""

import signal


def hears_ctrl_c() -> None:
    """For `preexec_fn`: background jobs of a shell ignore SIGINT, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
