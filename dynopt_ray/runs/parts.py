"""The parts of a run that are done, which are not repeated when the run is continued."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynopt_ray.journals import RunJournal
from dynopt_ray.storage import read_state, write_state

# The state of a part is saved if it has been computed for this many times as long as saving the
# last one took. So a run spends at most a twentieth of its time on it.
_WORK_PER_SAVE = 20


class Parts:
    """Results of finished parts, and states of unfinished ones, in files of the run directory.

    A part counts as done once the journal says so, which it does after the file has been written.

    Args:
        directory: the directory of the files.
        journal: the journal of the run.
    """

    def __init__(self, directory: Path, journal: RunJournal) -> None:
        self._directory = directory
        self._journal = journal
        self._done = {r["name"] for r in journal.records if r.kind == "part"}
        self._saved_at = time.monotonic()
        self._save_s = 0.0

    def result(self, name: str) -> dict[str, Any] | None:
        """Return the result of a part, or None if it is not done.

        Raises:
            CheckpointError: its file is missing or damaged.
        """
        return read_state(self._path(name), kind="part") if name in self._done else None

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep the result of a part: nested dicts and lists of numbers, texts and tensors.

        Raises:
            CheckpointError: it could not be written.
        """
        write_state(self._path(name), result, kind="part")
        self._journal.append("part", name=name)
        self._journal.sync()
        self._done.add(name)
        self._unfinished(name).unlink(missing_ok=True)

    def state(self, name: str) -> dict[str, Any] | None:
        """Return the latest saved state of an unfinished part, or None.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self._unfinished(name)
        return read_state(path, kind="part") if path.exists() else None

    def save(self, name: str, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save the state of an unfinished part, unless the last time was only a moment ago.

        Raises:
            CheckpointError: it could not be written; the state before is still valid.
        """
        begun = time.monotonic()
        if begun - self._saved_at < _WORK_PER_SAVE * self._save_s:
            return
        write_state(self._unfinished(name), state(), kind="part")
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - begun

    def _path(self, name: str) -> Path:
        self._directory.mkdir(exist_ok=True)
        return self._directory / f"{name}.safetensors"

    def _unfinished(self, name: str) -> Path:
        return self._path(f"{name}.unfinished")
