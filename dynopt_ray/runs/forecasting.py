"""Say what a run would do and how long it would take, without doing it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dynopt_ray.cluster import ClusterNeed
from dynopt_ray.runs.kind import WorkPart
from dynopt_ray.runs.kinds import KINDS
from dynopt_ray.runs.origin import prepare_task
from dynopt_ray.runs.run import threads
from dynopt_ray.runs.spec import NetworkSpec, Spec
from dynopt_ray.training import make_optimizer

# The first steps are slow: buffers are allocated, kernels chosen.
_WARM_UP, _MEASURED = 3, 10
# Steps that change the weights by nothing that matters.
_RATE = 1e-6


@dataclass(frozen=True)
class Forecast:
    """What a run would do.

    Attributes:
        works: the parts of its work.
        seconds: the estimated time of each part, or None if it cannot be measured in advance.
        slots: the number of trials that run at once; 1 without a cluster.
        need: what one trial or actor reserves, or None if the run uses no cluster.
        nodes: what each node offers.
        storage: where the results go.
    """

    works: Sequence[WorkPart]
    seconds: Sequence[float | None]
    slots: int
    need: ClusterNeed | None
    nodes: Sequence[str]
    storage: Path

    @property
    def total_s(self) -> float:
        """The estimated time of all parts that can be measured."""
        return sum(seconds or 0.0 for seconds in self.seconds)

    @property
    def gpu_hours(self) -> float:
        """The GPU hours that the slots hold for the estimated time of their parts."""
        held = zip(self.works, self.seconds, strict=True)
        in_slots = sum(seconds or 0.0 for work, seconds in held if work.in_slots)
        return in_slots * self.slots * (self.need.gpus if self.need else 0) / 3_600


def forecast(spec: Spec, *, address: str | None, storage: Path) -> Forecast:
    """Return what a run would do; write nothing.

    Without an address nothing is started, and the nodes are this machine. With one, the cluster is
    joined for a moment and checked as before a run.

    Args:
        spec: the spec of the run.
        address: the address of the cluster, or None.
        storage: the run directory that would be made.

    Raises:
        DynoptError: data or arguments are wrong, or the cluster lacks what the run needs.
    """
    from dynopt_ray.cluster import check_nodes, session, this_machine

    kind = KINDS[spec.kind]
    need = None if kind.need is None else kind.need(spec)
    nodes = [this_machine()]
    if need is not None and address is None:
        # A cluster started for the run would offer as many CPUs as its workers need.
        check_nodes(replace(need, total_cpus=0), nodes)
    elif need is not None:
        with session(address, **need.session_options) as joined:
            nodes = list(joined.nodes)
    slots = 1 if need is None else max(1, sum(map(need.room, nodes)))
    limit = getattr(getattr(spec, "search", None), "max_concurrent", None)
    slots = min(slots, limit or slots)
    works = kind.work(spec)
    with threads(spec.num_threads):
        seconds = _seconds(spec, works, slots)
    return Forecast(works, seconds, slots, need, [node.described for node in nodes], storage)


def _seconds(spec: Spec, works: Sequence[WorkPart], slots: int) -> list[float | None]:
    """Measure one unit of each sort of work, and return the time of each part."""
    step_s: float | None = None
    seconds: list[float | None] = []
    for work in works:
        unit_s: float | None = None
        if work.unit == "optimizer steps":
            step_s = unit_s = _step_s(spec) if step_s is None else step_s
        elif work.unit == "environment rounds":
            unit_s = _round_s(work)
        at_once = slots if work.in_slots else 1
        seconds.append(None if unit_s is None else math.ceil(work.units / at_once) * unit_s)
    return seconds


def _step_s(spec: Spec) -> float:
    """Return the seconds of one optimizer step of the untrained network on this machine."""
    assert isinstance(spec, NetworkSpec)  # only networks are trained in optimizer steps
    task = prepare_task(spec)
    model = task.new_model(seed=spec.seed)
    optimizer = make_optimizer(spec.optimizer, model, lr=_RATE)
    task.train_steps(model, optimizer, _WARM_UP)
    begun = time.perf_counter()
    task.train_steps(model, optimizer, _MEASURED)
    return (time.perf_counter() - begun) / _MEASURED


def _round_s(work: WorkPart) -> float:
    """Return the seconds in which each environment takes one step."""
    import gymnasium
    import numpy as np

    environments = gymnasium.make_vec(vectorization_mode="vector_entry_point", **work.environments)
    try:
        observations, _ = environments.reset(seed=0)
        begun = time.perf_counter()
        for _ in range(_WARM_UP):
            # The first legal action of each environment.
            actions = np.asarray(observations["action_mask"]).argmax(axis=1)
            observations, *_ = environments.step(actions)
        return (time.perf_counter() - begun) / _WARM_UP
    finally:
        environments.close()
