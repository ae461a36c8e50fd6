"""Trackers show the trials of a search in other tools while it runs."""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dynopt_ray.cluster.trials import flat_config, from_json
from dynopt_ray.errors import PluginError, SpecError, described
from dynopt_ray.plugins import build

_log = logging.getLogger("dynopt_ray.search")
_FLUSH_S = 10


@runtime_checkable
class Tracker(Protocol):
    """Shows trials in another tool. Its methods are called in the driver, one at a time."""

    def started(self, trial: int, config: Mapping[str, Any]) -> None:
        """A trial runs, for the first time or again, with this configuration."""

    def measured(self, trial: int, row: Mapping[str, float]) -> None:
        """A trial has made a measurement: step, accuracy, cost, utility and its details."""

    def ended(self, trial: int, status: str, error: str) -> None:
        """A trial is "finished", "stopped" or "failed"."""

    def close(self) -> None:
        """The search is over, or is interrupted."""


TrackerLike = str | Mapping[str, Any] | Tracker
"""A tracker, its name, or a mapping with its name and arguments."""


def make_trackers(
    configs: Sequence[TrackerLike], *, directory: str | os.PathLike[str] | None
) -> list[Tracker]:
    """Make trackers from their names, or from mappings with their names and arguments.

    Args:
        configs: names, mappings, or trackers, which are returned as they are.
        directory: where trackers write files, unless their arguments contain a `directory`.

    Raises:
        SpecError, UnknownNameError, PluginError: there is no such tracker, it refuses its
            arguments, or it needs a directory.
    """
    made = []
    for config in configs:
        one = config
        if not isinstance(config, Tracker):
            one = build("trackers", config, directory=directory)
        if not isinstance(one, Tracker):
            raise SpecError(
                f"the tracker {config!r:.60} is {one!r:.60}; it needs the methods started, "
                "measured, ended and close"
            )
        made.append(one)
    return made


class TrackerSink:
    """Passes the records of a search to a tracker.

    If the tracker raises an error, the search continues. The error is logged, and the tracker is
    not called again.

    Args:
        tracker: receives the events.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._is_broken = False

    def append(self, kind: str, /, **fields: Any) -> None:
        """Take in a record; see `SearchRecords`."""
        trial = fields.get("trial", 0)
        if kind == "started":
            config = from_json(fields["config"])
            self._tell(lambda: self._tracker.started(trial, config))
        elif kind == "measured":
            row = {name: one for name, one in from_json(fields["row"]).items() if name != "final"}
            self._tell(lambda: self._tracker.measured(trial, row))
        elif kind == "ended":
            self._tell(lambda: self._tracker.ended(trial, fields["status"], fields["error"]))

    def close(self) -> None:
        """Close the tracker."""
        self._tell(self._tracker.close)

    def _tell(self, call: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            call()
        except Exception as error:  # a server may be away, and a tracker may be the user's own
            self._is_broken = True
            name = type(self._tracker).__name__
            _log.warning("search: the tracker %s is not called again: %s", name, described(error))


class TensorBoard:
    """Writes one run of TensorBoard per trial: its figures over steps, and its configuration.

    Args:
        directory: where to write; one directory per trial.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers: dict[int, Any] = {}
        self._configs: dict[int, dict[str, Any]] = {}
        self._rows: dict[int, Mapping[str, float]] = {}

    def started(self, trial: int, config: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._configs[trial] = flat_config(config, "")

    def measured(self, trial: int, row: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from tensorboardX import SummaryWriter

        if trial not in self._writers:
            where = str(self._directory / f"trial-{trial:05d}")
            self._writers[trial] = SummaryWriter(where, flush_secs=_FLUSH_S)
        for name, value in row.items():
            if name != "step":
                self._writers[trial].add_scalar(name, value, int(row["step"]))
        self._rows[trial] = row

    def ended(self, trial: int, status: str, error: str) -> None:
        """See `Tracker`."""
        writer = self._writers.pop(trial, None)
        if writer is None:
            return
        if error:
            writer.add_text("error", error)
        self._add_settings(writer, trial, status)
        writer.close()

    def close(self) -> None:
        """See `Tracker`."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _add_settings(self, writer: Any, trial: int, status: str) -> None:
        """Add what the page of hyperparameters compares trials by."""
        from tensorboardX.summary import hparams

        settings = {name: _simple(value) for name, value in self._configs.pop(trial, {}).items()}
        last = self._rows.pop(trial)
        figures = {name: float(last[name]) for name in ("accuracy", "cost", "utility")}
        for summary in hparams({**settings, "status": status}, figures):
            writer.file_writer.add_summary(summary)


class MLflow:
    """Makes one run of MLflow per trial, with its configuration and its figures over steps.

    Args:
        experiment: the name of MLflow's experiment.
        tracking_uri: MLflow's server or directory. None takes what MLflow is set up for, such as
            the environment variable MLFLOW_TRACKING_URI.
    """

    def __init__(self, experiment: str, tracking_uri: str | None) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=tracking_uri)
        known = self._client.get_experiment_by_name(experiment)
        self._experiment = (
            known.experiment_id if known else self._client.create_experiment(experiment)
        )
        self._runs: dict[int, str] = {}

    def started(self, trial: int, config: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Param

        if trial in self._runs:
            return
        run = self._client.create_run(self._experiment, run_name=f"trial {trial}")
        self._runs[trial] = run.info.run_id
        settings = flat_config(config, "")
        params = [Param(_mlflow_name(name), str(value)) for name, value in settings.items()]
        self._client.log_batch(run.info.run_id, params=params)

    def measured(self, trial: int, row: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now, step = int(1_000 * time.time()), int(row["step"])
        figures = {name: value for name, value in row.items() if name != "step"}
        metrics = [Metric(_mlflow_name(n), float(v), now, step) for n, v in figures.items()]
        self._client.log_batch(self._runs[trial], metrics=metrics)

    def ended(self, trial: int, status: str, error: str) -> None:
        """See `Tracker`."""
        run = self._runs.pop(trial, None)
        if run is None:
            return
        self._client.set_tag(run, "status", status)
        if error:
            self._client.set_tag(run, "error", error)
        self._client.set_terminated(run, "FAILED" if status == "failed" else "FINISHED")

    def close(self) -> None:
        """See `Tracker`."""
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")
        self._runs.clear()


def tensorboard(*, directory: str | os.PathLike[str] | None) -> Tracker:
    """Write event files for TensorBoard: `tensorboard --logdir DIRECTORY` shows them.

    Args:
        directory: where to write. In a run it is tensorboard/ in the run directory by default.
    """
    if directory is None:
        raise SpecError("tensorboard needs a directory; give {name: tensorboard, directory: …}")
    return TensorBoard(Path(directory) / "tensorboard")


def mlflow(
    *,
    directory: str | os.PathLike[str] | None,
    experiment: str = "dynopt_ray",
    tracking_uri: str | None = None,
) -> Tracker:
    """Log trials to MLflow, whose package `mlflow` or `mlflow-skinny` must be installed.

    Args:
        directory: not used.
        experiment: the name of MLflow's experiment.
        tracking_uri: MLflow's server or directory. None takes what MLflow is set up for, such as
            the environment variable MLFLOW_TRACKING_URI.
    """
    del directory
    try:
        return MLflow(experiment, tracking_uri)
    except ImportError as error:
        raise PluginError(
            f"the tracker mlflow needs MLflow: pip install mlflow ({error})"
        ) from error


def _simple(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _mlflow_name(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", name)
