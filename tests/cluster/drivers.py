"""Searches in a process of their own, which is killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynopt_ray.cluster import search, session
from dynopt_ray.journals import RunRecord, lines_at, read_journal
from dynopt_ray.plugins import import_attribute

ROOT = Path(__file__).parents[2]


def records_of(storage: Path) -> tuple[RunRecord, ...]:
    """Return the records of a search, which may be running."""
    return read_journal(lines_at(str(storage)))


def start(folder: Path, settings: Mapping[str, Any], **trial: Any) -> "subprocess.Popen[str]":
    """Start the driver of a search, which keeps its journal in `folder`/run.

    Args:
        folder: for its files.
        settings: of the search; "space" among them.
        trial: "make", which makes the trial, as module:attribute, and its arguments after the
            folder.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.drivers"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "DRIVER": json.dumps([str(folder), settings, trial]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_killed(
    folder: Path, settings: Mapping[str, Any], kills: Sequence[int], **trial: Any
) -> int:
    """Run a search, and kill its driver each time its journal has one more number of measurements.

    Returns:
        How often it was killed, because it may be done before.
    """
    for killed, measurements in enumerate([*kills, None]):
        driver = start(folder, settings, **trial)
        deadline = time.monotonic() + 180
        try:
            while driver.poll() is None:
                assert time.monotonic() < deadline, "the search does not end"
                if measurements is not None and num_measured(folder / "run") >= measurements:
                    driver.send_signal(signal.SIGKILL)
                time.sleep(0.02)
            _, errors = driver.communicate()
        finally:
            driver.kill()
        if driver.returncode == 0:
            return killed
        assert driver.returncode == -signal.SIGKILL, errors[-2000:]
    raise AssertionError("the search was killed more often than wanted")


def num_measured(storage: Path) -> int:
    """Return the number of measurements in a journal."""
    return sum(record.kind == "measured" for record in records_of(storage))


def main() -> None:
    """Carry out the search that the environment describes."""
    folder, settings, trial = json.loads(os.environ["DRIVER"])
    made = import_attribute(trial.pop("make"))(Path(folder), **trial)
    with session(settings.pop("address", None)):
        search(made, settings.pop("space"), storage=Path(folder) / "run", **settings)


if __name__ == "__main__":
    main()
