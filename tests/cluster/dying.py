"""Trials whose figures follow from their configurations, and that may die on the way."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynopt_ray.cluster import Measurement

NUM_REPORTS = 4
SPACE: dict[str, Any] = {
    "x": {"low": 0.0, "high": 1.0},
    "y": {"low": 1e-3, "high": 1.0, "log": True},
}

_BORN = time.time()

Place = Literal["load", "begin", "step", "report", "state", "network"]


@dataclass(frozen=True)
class Dying:
    """A trial that kills its process or its node, once at each of the given places, in that order.

    At the next place, a process dies that was started after the death before, so a trial was lost
    and continued in between.

    Attributes:
        folder: has a line for each step that was computed, and a file for each death.
        at: the places: while the trial is loaded into a process, when it begins, within a step,
            just before it reports, while it gives its state, while it gives its network.
        whole_node: whether the node dies, not only the process.
        step_s: the duration of a step, in seconds.
    """

    folder: Path
    at: tuple[Place, ...] = ()
    whole_node: bool = False
    step_s: float = 0.02

    def __call__(
        self, config: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Iterator[Measurement]:
        height, begin = (0.0, 0) if state is None else (state["height"], state["step"])
        self._pass("begin")
        for step in range(begin + 1, NUM_REPORTS + 1):
            time.sleep(self.step_s)
            note(self.folder / "steps", f"{config['x']} {step}")
            if step == 3:
                self._pass("step")
            height += 1 - (config["x"] - 0.3) ** 2 - config["y"] / 10
            if step == 2:
                self._pass("report")
            yield Measurement(
                step=step,
                accuracy=height / NUM_REPORTS,
                cost=config["y"],
                final=step == NUM_REPORTS,
                network=lambda: self._network(config),
                state=lambda h=height, s=step: self._state(h, s),  # type: ignore[misc]
            )

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)
        self._pass("load")

    def _network(self, config: Mapping[str, Any]) -> bytes:
        self._pass("network")
        return f"{config['x']}".encode()

    def _state(self, height: float, step: int) -> dict[str, Any]:
        if step == 3:
            self._pass("state")
        return {"height": height, "step": step}

    def _pass(self, place: Place) -> None:
        """Die, if this is a place to die that no process has come to before."""
        deaths = sorted(path.stat().st_mtime for path in self.folder.glob("died-*"))
        if place not in self.at[len(deaths) : len(deaths) + 1] or not _is_worker_of_living_node():
            return
        if deaths and deaths[-1] > _BORN:
            return
        try:
            (self.folder / f"died-{place}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getppid() if self.whole_node else os.getpid(), signal.SIGKILL)

    def deaths(self) -> int:
        """Return how often processes or nodes have died."""
        return len(list(self.folder.glob("died-*")))

    def steps(self) -> list[str]:
        """Return the steps that were computed, with those that were computed twice."""
        path = self.folder / "steps"
        return path.read_text().splitlines() if path.exists() else []


def _is_worker_of_living_node() -> bool:
    """Whether this is a worker, whose parent is the main process of its node."""
    return b"raylet/raylet" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()


def note(path: Path, line: str) -> None:
    """Add a line to a file that several processes write to."""
    with path.open("a") as file:
        file.write(f"{line}\n")
