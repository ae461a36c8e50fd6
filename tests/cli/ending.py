"""Ends commands in the middle of their runs."""

import json
import signal
import subprocess
import time
from pathlib import Path

from tests.cli.test_cli_process import descendants


def num_beginnings(run: Path) -> int:
    """How often a run was begun or continued."""
    path = run / "manifest.json"
    return 1 + len(json.loads(path.read_text()).get("continued", [])) if path.exists() else 0


def end_after(
    process: "subprocess.Popen[str]", number: signal.Signals, after_s: float, run: Path
) -> dict[int, str]:
    """Send a signal to a command `after_s` after its run began; return the processes below it."""
    deadline, before = time.monotonic() + 120, num_beginnings(run)
    while process.poll() is None and num_beginnings(run) == before:
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.05)
    time.sleep(after_s)
    below = descendants(process.pid)
    process.send_signal(number)
    return below
