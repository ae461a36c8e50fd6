"""Carry out runs: a checked spec goes in, a directory with results and a report comes out.

Example:
    >>> from pathlib import Path
    >>> from dynopt_ray.runs import load_spec, prepare, spec_text
    >>> from dynopt_ray.runs import Run, RunDirectory, Silent, carry_out
    >>> spec = load_spec("prune", ["task=digits-mlp"])
    >>> action = prepare(spec)
    >>> about = {"spec": "prune", "kind": spec.kind, "seed": spec.seed}
    >>> directory = RunDirectory.create(
    ...     Path("runs/mine"), spec_text=spec_text(spec), about=about
    ... )  # doctest: +SKIP
    >>> carry_out(action, Run(directory, Silent()))  # doctest: +SKIP
"""

from dynopt_ray.runs.clusters import cluster_for
from dynopt_ray.runs.directory import RunDirectory, default_path
from dynopt_ray.runs.forecasting import Forecast, forecast
from dynopt_ray.runs.kind import PreparedRun
from dynopt_ray.runs.kinds import KINDS, check_address, check_can_start, prepare
from dynopt_ray.runs.loading import check_spec, load_spec, packaged, spec_text
from dynopt_ray.runs.progress import Lines, Live, Progress, Silent
from dynopt_ray.runs.report import write_comparison, write_report
from dynopt_ray.runs.run import Run, carry_out
from dynopt_ray.runs.spec import Spec
from dynopt_ray.runs.state import rebuild_tables, status_of

__all__ = [
    "KINDS",
    "Forecast",
    "Lines",
    "Live",
    "PreparedRun",
    "Progress",
    "Run",
    "RunDirectory",
    "Silent",
    "Spec",
    "carry_out",
    "check_address",
    "check_can_start",
    "check_spec",
    "cluster_for",
    "default_path",
    "forecast",
    "load_spec",
    "packaged",
    "prepare",
    "rebuild_tables",
    "spec_text",
    "status_of",
    "write_comparison",
    "write_report",
]
