"""What a kind of run is."""

from collections.abc import Callable
from dataclasses import dataclass

from dynopt_ray.runs.run import Run
from dynopt_ray.runs.spec import Spec

PreparedRun = Callable[[Run], None]
"""Carries out a run: everything that takes long or writes."""


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        spec: what its specs may say.
        runner: `module:function`, from a spec to an `PreparedRun`. It is imported at its first use,
            and raises what is wrong with the spec's task, files or arguments.
        on_cluster: whether it runs on a Ray cluster.
    """

    spec: type[Spec]
    runner: str
    on_cluster: bool = True
