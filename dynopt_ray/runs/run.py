"""Carry out a run, and record in its directory how it ended.

`carry_out` calls a prepared run and turns each way in which the call can end into a status of the
run directory: "finished" if it returns, "interrupted" on KeyboardInterrupt (which the command line
also raises on SIGTERM), and "failed" on any other exception, whose text is stored with it. The
status is written before the report, so a report that cannot be written does not hide how the run
ended. The exception is then raised again, for the caller to handle. Only a process that is killed
outright leaves a directory that still says "running". Log messages and warnings go to log.txt in
the run directory for as long as the run lasts. A run that did not finish can be continued: what it
found is in its journal and in its parts.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dynopt_ray.devices import Determinism
from dynopt_ray.errors import described
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.parts import Parts
from dynopt_ray.runs.progress import Progress
from dynopt_ray.runs.report import write_report
from dynopt_ray.runs.spec import Spec

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("dynopt_ray")


@dataclass(frozen=True, eq=False)
class Run:
    """The context of a run: where it writes, shows its progress and computes.

    Attributes:
        directory: the directory to write to.
        progress: shows its progress.
        address: address of the Ray cluster to join. None starts one on this machine if needed.
        num_threads: number of torch's threads. None leaves the choice to torch.
        deterministic: whether a GPU gives the same bits for the same seed.
    """

    directory: RunDirectory
    progress: Progress
    address: str | None = None
    num_threads: int | None = None
    deterministic: bool = False

    @staticmethod
    def of(
        spec: Spec, directory: RunDirectory, progress: Progress, address: str | None = None
    ) -> "Run":
        """Return a run with the settings of a spec."""
        return Run(directory, progress, address, spec.num_threads, spec.deterministic)

    @cached_property
    def parts(self) -> Parts:
        """The parts of the run that are done."""
        return Parts(self.directory.path / "parts", self.directory.journal)

    def outcome(self, name: str, title: str, frame: "pd.DataFrame") -> None:
        """Write a table with an outcome of the run to its directory, and show it."""
        self.directory.write_table(name, frame)
        self.progress.table(title, frame)


def carry_out(action: Callable[[Run], None], run: Run) -> None:
    """Carry out a run. However it ends, its directory says so, has a report, and is unlocked.

    Raises:
        KeyboardInterrupt: the user interrupted the run; its status is "interrupted".
        Exception: the action raised it; the status is "failed", and log.txt has the traceback.
    """
    with (
        closing(run.directory),
        _logged(run.directory),
        threads(run.num_threads),
        Determinism(run.deterministic),
    ):
        try:
            action(run)
            run.directory.finish("finished")
        except KeyboardInterrupt:
            log.warning("interrupted")
            run.directory.finish("interrupted")
            _report_what_there_is(run)
            raise
        except BaseException as error:
            log.error(traceback.format_exc())
            run.directory.finish("failed", error=described(error))
            _report_what_there_is(run)
            raise
        write_report(run.directory)


def _report_what_there_is(run: Run) -> None:
    try:
        write_report(run.directory)
    except Exception:
        # A report on half a run may fail. Its error must not replace that of the run itself.
        log.error(traceback.format_exc())


@contextmanager
def threads(num_threads: int | None) -> Iterator[None]:
    """Set torch's number of threads within a block; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _logged(directory: RunDirectory) -> Iterator[None]:
    """Write this process's log messages and warnings to log.txt within a block."""
    handler = logging.FileHandler(directory.path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, level = logging.getLogger(), log.level
    root.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        log.setLevel(level)
        root.removeHandler(handler)
        handler.close()
