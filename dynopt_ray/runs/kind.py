"""The description of a kind of run: its spec and its runner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dynopt_ray.runs.run import Run
from dynopt_ray.runs.spec import Spec

PreparedRun = Callable[[Run], None]
"""Carries out a run that has been checked. It does everything that is slow or writes files."""


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        spec: the class of its specs.
        runner: `module:function` of the function that turns a spec into a `PreparedRun`. It is
            imported at its first use, and raises an error if the task, files or arguments that the
            spec names are wrong.
        on_cluster: whether runs of this kind use a Ray cluster.
        rebuild: `module:function` of a function that writes the tables of a run directory from its
            journal, for a run that died or goes on; None if the tables are written at the end only.
        is_local: spec -> whether its run needs no cluster, although runs of this kind may use one.
    """

    spec: type[Spec]
    runner: str
    on_cluster: bool = True
    rebuild: str | None = None
    is_local: Callable[[Any], bool] = lambda _: False
