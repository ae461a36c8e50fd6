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

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynopt_ray.errors import RunError
from dynopt_ray.journals import LocalLines, RunJournal, RunRecord, read_journal
from dynopt_ray.runs import manifest
from dynopt_ray.storage import replace_file

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "journal.jsonl"
# A run directory with these files only has no results.
_WITHOUT_RESULTS = frozenset({"spec.yaml", "manifest.json", "log.txt", "report.html"})

RunStatus = Literal["running", "finished", "failed", "interrupted"]

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
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run directory {path}: {error.strerror}") from error
        directory = RunDirectory(path)
        directory.lock()
        try:
            directory._clear()
        except BaseException:
            directory.close()
            raise
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
        try:
            read: dict[str, Any] = json.loads((self.path / "manifest.json").read_text("utf-8"))
        except ValueError as error:
            raise RunError(f"{self.path / 'manifest.json'} is damaged: {error}") from error
        _check_manifest(read, self.path / "manifest.json")
        return read

    @property
    def spec_text(self) -> str:
        """The resolved spec as YAML.

        Raises:
            RunError: spec.yaml cannot be read.
        """
        try:
            return (self.path / "spec.yaml").read_text("utf-8")
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self.path / 'spec.yaml'}: {error}") from error

    def finish(self, status: RunStatus, *, error: str | None = None) -> None:
        """Record in the manifest how and when the run ended."""
        before = self.manifest
        started = datetime.fromisoformat(before["started"])
        duration_s = round(time.time() - started.timestamp(), 1)
        end = {"status": status, "ended": _now(), "duration_s": duration_s}
        self._write_manifest({**before, **end, **({"error": error} if error else {})})

    def write_text(self, name: str, text: str) -> None:
        """Write a text file; a folder in its name is made if it is missing."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        replace_text(path, text)

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
        try:
            return pd.read_csv(path)
        except ValueError as error:
            raise RunError(f"{path} is damaged: {str(error).strip()}") from error

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
            self.close()
            (self.path / JOURNAL).unlink()
            raise RunError(
                f"{self.path} exists already and has other files in it, such as {others[0]}; "
                "choose another --out"
            )
        for name in _WITHOUT_RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        self.write_text("manifest.json", json.dumps(content, indent=2) + "\n")


def _check_manifest(content: object, path: Path) -> None:
    for key, kind in _MANIFEST.items():
        if not isinstance(content, dict) or (key not in content and key != "duration_s"):
            raise RunError(f"{path} is damaged: it has no {key!r}")
        if key in content and not isinstance(content[key], kind):
            raise RunError(f"{path} is damaged: its {key!r} is {content[key]!r}")


def replace_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, "utf-8")

    replace_file(path, write, private=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
