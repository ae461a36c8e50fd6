"""The description of a kind of run: its spec and its runner."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dynopt_ray.cluster import ClusterNeed
from dynopt_ray.runs.run import Run
from dynopt_ray.runs.spec import NetworkSpec, Spec

PreparedRun = Callable[[Run], None]
"""Carries out a run that has been checked. It does everything that is slow or writes files."""


@dataclass(frozen=True)
class WorkPart:
    """A part of the work of a run, for `dynopt run --dry-run`.

    Attributes:
        name: the part, e.g. "search".
        units: number of units of work.
        unit: what a unit is.
        in_slots: whether it is spread over the slots of the cluster.
        note: what else is to say of it.
        environments: arguments of `gymnasium.make_vec` for the environments of a round.
    """

    name: str
    units: int
    unit: Literal["optimizer steps", "environment rounds", "events", "trials"] = "optimizer steps"
    in_slots: bool = False
    note: str = ""
    environments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        spec: the class of its specs.
        variants: a key -> the class of the specs that have this key.
        runner: `module:function` of the function that turns a spec into a `PreparedRun`. It is
            imported at its first use, and raises an error if the task, files or arguments that the
            spec names are wrong.
        work: returns the parts of the work of a spec, in their order.
        need: returns what the run of a spec needs from a Ray cluster, or None if it uses none. If
            this is itself None, no run of this kind uses a cluster.
        rebuild: `module:function` of a function that writes the tables of a run directory from its
            journal, for a run that died or goes on; None if the tables are written at the end only.
    """

    spec: type[Spec]
    runner: str
    work: Callable[[Any], tuple[WorkPart, ...]]
    need: Callable[[Any], ClusterNeed | None] | None = None
    rebuild: str | None = None
    variants: Mapping[str, type[Spec]] = field(default_factory=dict)

    def spec_of(self, data: Mapping[str, Any]) -> type[Spec]:
        """Return the class of the spec that plain data describe."""
        return next((one for key, one in self.variants.items() if key in data), self.spec)


def training_work(spec: NetworkSpec) -> tuple[WorkPart, ...]:
    """Return the training of a new network; none if the spec loads one."""
    return () if spec.train is None else (WorkPart("train", spec.train.num_steps),)
