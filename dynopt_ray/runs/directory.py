"""Run directories: what a run was, what came of it, and how it ended."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynopt_ray.errors import RunError
from dynopt_ray.runs import manifest
from dynopt_ray.storage import replace_file

if TYPE_CHECKING:
    import pandas as pd

RunStatus = Literal["running", "finished", "failed", "interrupted"]

_MANIFEST: Mapping[str, type | tuple[type, ...]] = {
    "kind": str,
    "seed": int,
    "status": str,
    "started": str,
    "duration_s": (int, float),  # a run that was killed has none
}


def default_path(name: str) -> Path:
    """`runs/<name>-<time>`, numbered on where two runs start in one second."""
    stem = f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


class RunDirectory:
    """A directory that a spec produced. Every file in it is whole or absent.

    Attributes:
        path: where it is.
        name: what it is called in reports.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @staticmethod
    def create(path: Path, *, spec_text: str, about: Mapping[str, Any]) -> "RunDirectory":
        """Make a new run directory, "running".

        Args:
            path: where; its parents are made as needed.
            spec_text: the resolved spec as YAML.
            about: what the manifest begins with: spec, kind, seed.

        Raises:
            RunError: it exists already, or cannot be made.
        """
        if path.exists():
            raise RunError(
                f"{path} exists already, and a run never overwrites another; choose another --out"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()  # fails where another run was faster
        except OSError as error:
            raise RunError(f"cannot make the run directory {path}: {error.strerror}") from error
        directory = RunDirectory(path)
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
        """A run directory that exists.

        Raises:
            RunError: there is none, or it is not one.
        """
        if not (path / "manifest.json").is_file():
            what = (
                "there is no manifest.json in it" if path.is_dir() else "there is no such directory"
            )
            raise RunError(f"{path} is not a run directory: {what}")
        return RunDirectory(path)

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says.

        Raises:
            RunError: it is damaged.
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
            RunError: it cannot be read.
        """
        try:
            return (self.path / "spec.yaml").read_text("utf-8")
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self.path / 'spec.yaml'}: {error}") from error

    def finish(self, status: RunStatus, *, error: str | None = None) -> None:
        """Write down how the run ended."""
        before = self.manifest
        started = datetime.fromisoformat(before["started"])
        duration_s = round(time.time() - started.timestamp(), 1)
        end = {"status": status, "ended": _now(), "duration_s": duration_s}
        self._write_manifest({**before, **end, **({"error": error} if error else {})})

    def write_text(self, name: str, text: str) -> None:
        """Write a text file; directories in its name are made."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        replace_text(path, text)

    def write_results(self, frame: "pd.DataFrame") -> None:
        """Write results.csv, the run's main table."""
        self.write_text("results.csv", frame.to_csv(index=False))

    def write_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Write a further table, from which the report draws; see `charts`."""
        self.write_text(f"tables/{name}.csv", frame.to_csv(index=False))

    def table(self, name: str) -> "pd.DataFrame | None":
        """A table that was written, or None. "results" is results.csv.

        Raises:
            RunError: it is damaged.
        """
        import pandas as pd

        path = self.path / ("results.csv" if name == "results" else f"tables/{name}.csv")
        if not path.is_file() or path.stat().st_size <= 1:
            return None
        try:
            return pd.read_csv(path)
        except ValueError as error:
            raise RunError(f"{path} is damaged: {str(error).strip()}") from error

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        self.write_text("manifest.json", json.dumps(content, indent=2) + "\n")


def _check_manifest(content: object, path: Path) -> None:
    for key, kind in _MANIFEST.items():
        if not isinstance(content, dict) or (key not in content and key != "duration_s"):
            raise RunError(f"{path} is damaged: it has no {key!r}")
        if key in content and not isinstance(content[key], kind):
            raise RunError(f"{path} is damaged: its {key!r} is {content[key]!r}")


def replace_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, "utf-8")

    replace_file(path, write)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
