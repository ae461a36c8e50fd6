"""Find and end the processes of Ray that this process started, and no others."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_KILLED_WITHIN_S = 5.0


@dataclass(frozen=True)
class Process:
    """A process. Its start time distinguishes it from a later process with the same id.

    Attributes:
        pid: the process id.
        start: the start time in clock ticks since boot.
    """

    pid: int
    start: int

    def is_alive(self) -> bool:
        """Whether the process is still running."""
        return self in _all_processes()


def ray_processes() -> set[Process]:
    """Return Ray's processes that descend from this one. Empty on systems without /proc."""
    parents = _all_processes()
    children: dict[int, list[Process]] = {}
    for process, parent in parents.items():
        children.setdefault(parent, []).append(process)
    found: set[Process] = set()
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        todo += [process.pid for process in below]
        found |= {process for process in below if _is_rays(process.pid)}
    return found


def end(processes: set[Process], *, grace_s: float) -> None:
    """Wait until all processes have ended, and kill those left after `grace_s` seconds."""
    processes = _left(processes, grace_s)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    # A process that was killed may still be writing for a moment.
    _left(processes, _KILLED_WITHIN_S)


def _left(processes: set[Process], wait_s: float) -> set[Process]:
    """Wait until all processes have ended; return those left after `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while (processes := processes & _all_processes().keys()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return processes


def _all_processes() -> dict[Process, int]:
    """Return process -> id of its parent, for every process that has not ended."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            found[Process(int(directory.name), int(fields[19]))] = int(fields[1])
    return found


def _is_rays(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return command.startswith(b"ray::") or b"/site-packages/ray/" in command
