"""Run directories: the record of what a run was, what it measured and how it ended.

A run directory holds `spec.yaml` (the resolved spec), `manifest.json` (kind, seed, status, times,
versions, hardware and commit), `results.csv` (the main table) and `tables/*.csv` (further tables).
The charts and the report are drawn from these files alone, so they can be rebuilt at any time.

No run overwrites results of another. A directory without results, which a run left behind that
failed early, may be used again. While a run goes on, its journal is locked, so that two processes
never write to one directory. Every file that this module writes is first written
to a temporary file and then renamed, so after a crash or with a full disk it has its old or its new
content, never a part of it. The status is "running" until `finish` replaces it; a run that was
killed therefore still says "running" and has no duration. Files are checked when they are read,
and an error names the damaged one.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dynopt_ray.errors import RunError, short, shortened
from dynopt_ray.journals import LocalLines, RunJournal, RunRecord, read_journal
from dynopt_ray.runs import manifest
from dynopt_ray.storage import DAMAGE_ERRORS, replace_file

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "journal.jsonl"
# A run directory with these files only has no results.
_WITHOUT_RESULTS = frozenset({"spec.yaml", "manifest.json", "log.txt", "report.html"})
_LONGEST_SHOWN = 200
# A run may be someone else's, so its files are not trusted to have the size of ours.
_LARGEST_TEXT, _LARGEST_TABLE = 2**20, 100 * 2**20
_LONGEST_RUN_S = 1e9
# Linux takes paths of 4,095 bytes, and a run makes files in directories of its own.
_LONGEST_PATH = 3_800
RunStatus = Literal["running", "finished", "failed", "interrupted"]
STATES = get_args(RunStatus)

_MANIFEST: Mapping[str, type | tuple[type, ...]] = {
    "kind": str,
    "seed": int,
    "status": str,
    "started": str,
    "duration_s": (int, float),  # missing until the run ends, and if it was killed
}


def default_path(name: str) -> Path:
    """Return `runs/<name>-<time>`, with a number appended if two runs start in the same second."""
    stem = f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


class RunDirectory:
    """The directory of one run.

    Attributes:
        path: the path of the directory.
        name: the last part of the path, which names the run in reports.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._journal: RunJournal | None = None
        self._made: list[Path] = []

    @staticmethod
    def create(path: Path, *, spec_text: str, about: Mapping[str, Any]) -> "RunDirectory":
        """Make a new run directory with the status "running", and lock it.

        Args:
            path: the directory to make. Missing parents are made too.
            spec_text: the resolved spec as YAML.
            about: the first entries of the manifest: spec, kind and seed.

        Raises:
            RunError: the path has results of a run or other files, or the directory cannot be
                made.
        """
        directory = RunDirectory(path)
        directory._made = [p for p in (path, *path.parents) if not os.path.exists(p)]
        shown = _make(path)
        had_journal = (path / JOURNAL).exists()
        try:
            directory.lock()
            directory._clear()
            directory.write_text("spec.yaml", spec_text)
            directory._write_manifest(
                {
                    **about,
                    "status": "running",
                    "started": _now(),
                    "versions": manifest.versions(),
                    "hardware": manifest.hardware(),
                    "commit": manifest.commit(Path.cwd()),
                }
            )
        except OSError as error:
            directory.close()
            reason = f"cannot write to {shown}: {error.strerror}; choose another --out"
            raise RunError(reason) from error
        except BaseException:
            directory.close()
            if not had_journal:
                (path / JOURNAL).unlink(missing_ok=True)
            raise
        return directory

    @staticmethod
    def open(path: Path) -> "RunDirectory":
        """Return an existing run directory.

        Raises:
            RunError: the directory does not exist, or has no manifest.json.
        """
        if not (path / "manifest.json").is_file():
            what = (
                "there is no manifest.json in it" if path.is_dir() else "there is no such directory"
            )
            raise RunError(f"{path} is not a run directory: {what}")
        return RunDirectory(path)

    def reopen(self) -> None:
        """Record in the manifest that the run goes on."""
        before = self.manifest
        kept = {k: v for k, v in before.items() if k not in ("ended", "duration_s", "error")}
        continued = [*before.get("continued", []), _now()]
        self._write_manifest({**kept, "status": "running", "continued": continued})

    def lock(self) -> None:
        """Open the run's journal, and keep other processes from opening it, until `close`.

        Raises:
            RunError: another process has it open, or it is damaged.
        """
        self._journal = RunJournal(LocalLines(self.path / JOURNAL))

    def discard(self) -> None:
        """Delete what `create` has made, for a run that was refused before it did anything."""
        self.close()
        for name in (*_WITHOUT_RESULTS, JOURNAL):
            (self.path / name).unlink(missing_ok=True)
        for place in self._made:
            with contextlib.suppress(OSError):  # somebody else has put files there
                place.rmdir()

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    @property
    def journal(self) -> RunJournal:
        """The run's journal, which is open between `create` or `lock` and `close`."""
        assert self._journal is not None, "the run directory is not locked"
        return self._journal

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """The records of the run's journal, also while another process writes to it.

        Raises:
            RunError: the journal is damaged.
        """
        return read_journal(LocalLines(self.path / JOURNAL))

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / "manifest.json"
        try:
            read: dict[str, Any] = json.loads(self.manifest_text)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        _check_manifest(read, path)
        return read

    @property
    def manifest_text(self) -> str:
        """The text of manifest.json.

        Raises:
            RunError: the file cannot be read.
        """
        return self._read_text("manifest.json")

    @property
    def spec_text(self) -> str:
        """The resolved spec as YAML.

        Raises:
            RunError: spec.yaml cannot be read.
        """
        return self._read_text("spec.yaml")

    def finish(self, status: RunStatus, *, error: str | None = None) -> None:
        """Record in the manifest how and when the run ended."""
        before = self.manifest
        started = datetime.fromisoformat(before["started"])
        duration_s = round(time.time() - started.timestamp(), 1)
        end = {"status": status, "ended": _now(), "duration_s": duration_s}
        self._write_manifest({**before, **end, **({"error": error} if error else {})})

    def write_text(self, name: str, text: str) -> None:
        """Write a text file; a folder in its name is made if it is missing."""
        replace_text(self.writable(name), text)

    def writable(self, name: str) -> Path:
        """Return the path of a file to write; a folder in its name is made if it is missing.

        Raises:
            RunError: the folder is a link that leads out of the run.
        """
        path = self.path / name
        self._check_inside(path.parent)
        path.parent.mkdir(exist_ok=True)
        return path

    def write_results(self, frame: "pd.DataFrame") -> None:
        """Write results.csv, the run's main table."""
        self.write_text("results.csv", frame.to_csv(index=False))

    def write_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Write tables/<name>.csv, a further table for the report and its charts."""
        self.write_text(f"tables/{name}.csv", frame.to_csv(index=False))

    def table(self, name: str) -> "pd.DataFrame | None":
        """Return a table, or None if it is empty or was not written. "results" is results.csv.

        Raises:
            RunError: the file is damaged.
        """
        import pandas as pd

        path = self.path / ("results.csv" if name == "results" else f"tables/{name}.csv")
        if not path.is_file() or path.stat().st_size <= 1:
            return None
        self._check_readable(path, _LARGEST_TABLE)
        try:
            return pd.read_csv(path)
        except (*DAMAGE_ERRORS, OSError) as error:
            raise RunError(f"{path} is damaged: {str(error).strip()}") from error

    def _read_text(self, name: str) -> str:
        path = self.path / name
        if not path.is_file():
            raise RunError(f"cannot read {path}: there is no such file")
        self._check_readable(path, _LARGEST_TEXT)
        try:
            return path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from error

    def _check_readable(self, path: Path, most_bytes: int) -> None:
        self._check_inside(path)
        size = path.stat().st_size
        if size > most_bytes:
            raise RunError(f"{path} has {size:,} bytes; at most {most_bytes:,} are read")

    def _check_inside(self, path: Path) -> None:
        """Refuse a link out of the run, which would copy other files of this user into a report."""
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise RunError(f"{path} leads out of the run, to {path.resolve()}; replace the link")

    def _clear(self) -> None:
        """Delete what a run without results left behind.

        Raises:
            RunError: there are results, or other files.
        """
        others = sorted({e.name for e in self.path.iterdir()} - {*_WITHOUT_RESULTS, JOURNAL})
        if (others or self.journal.records) and (self.path / "manifest.json").exists():
            raise RunError(
                f"{self.path} has the results of a run, and a run never overwrites another; "
                f"continue it with `dynopt resume {self.path}`, or choose another --out"
            )
        if others:
            raise RunError(
                f"{self.path} exists already and has other files in it, such as {others[0]}; "
                "choose another --out"
            )
        for name in _WITHOUT_RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        self.write_text("manifest.json", json.dumps(content, indent=2) + "\n")


def _make(path: Path) -> str:
    """Make a directory unless it exists; return its path as messages show it."""
    shown = shortened(str(path), _LONGEST_SHOWN)
    if path.parts and path.parts[0].endswith(":") and len(path.parts[0]) > 2:
        raise RunError(
            f"the run directory {shown} is a URI; give a directory, such as one that all machines "
            "share. From Python, search(storage=…) takes a URI"
        )
    if len(os.fsencode(path.absolute())) > _LONGEST_PATH:
        raise RunError(f"the run directory {shown} has too long a path; choose a shorter --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the run directory {shown}: {error.strerror}; choose another --out"
        ) from error
    return shown


def _check_manifest(content: Any, path: Path) -> None:
    for key, kind in _MANIFEST.items():
        if not isinstance(content, dict) or (key not in content and key != "duration_s"):
            raise RunError(f"{path} is damaged: it has no {key!r}")
        if key in content and not isinstance(content[key], kind):
            raise RunError(f"{path} is damaged: its {key!r} is {short(content[key])}")
    if content["status"] not in STATES:
        raise RunError(
            f"{path} is damaged: its 'status' is {short(content['status'])}, which is none of "
            f"{', '.join(STATES)}"
        )
    if not 0 <= content.get("duration_s", 0) <= _LONGEST_RUN_S:
        raise RunError(f"{path} is damaged: its 'duration_s' is {short(content['duration_s'])}")


def replace_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""

    def write(temporary: Path) -> None:
        # File names may hold bytes that are no text, and UTF-8 cannot express them.
        temporary.write_text(text, "utf-8", errors="backslashreplace")

    replace_file(path, write, private=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
