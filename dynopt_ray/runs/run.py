"""A run under way: where it writes, where it says what it does, which cluster it uses."""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynopt_ray.errors import DynoptError
from dynopt_ray.runs.directory import RunDirectory
from dynopt_ray.runs.progress import Progress
from dynopt_ray.runs.report import write_report

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("dynopt_ray")


@dataclass(frozen=True)
class Run:
    """What an action is given.

    Attributes:
        directory: where it writes.
        progress: where it says what it does.
        address: the cluster to join; None starts one here when it is needed.
        num_threads: threads that torch computes with; None leaves it to torch.
    """

    directory: RunDirectory
    progress: Progress
    address: str | None = None
    num_threads: int | None = None

    def outcome(self, name: str, title: str, frame: "pd.DataFrame") -> None:
        """Write a table that says what came of the run, and show it."""
        self.directory.write_table(name, frame)
        self.progress.table(title, frame)


def carry_out(action: Callable[[Run], None], run: Run) -> None:
    """Carry out a run; whatever happens, its directory says how it ended, and has a report.

    Raises:
        KeyboardInterrupt: the user interrupted it; the directory says "interrupted".
        Exception: what the action raised; the directory says "failed", its log.txt has the
            traceback.
    """
    with _logged(run.directory), threads(run.num_threads):
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
            is_ours = isinstance(error, DynoptError)
            text = str(error) if is_ours else f"{type(error).__name__}: {error}"
            run.directory.finish("failed", error=text)
            _report_what_there_is(run)
            raise
        write_report(run.directory)


def _report_what_there_is(run: Run) -> None:
    try:
        write_report(run.directory)
    except Exception:
        # The run's own error matters; that of a report on half a run is for the log.
        log.error(traceback.format_exc())


@contextmanager
def threads(num_threads: int | None) -> Iterator[None]:
    """So many threads for torch's computations, for a while; None leaves it to torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _logged(directory: RunDirectory) -> Iterator[None]:
    """Messages and warnings of this process go to log.txt."""
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
