"""The kinds of runs: what their specs may say, and what carries them out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError
from dynopt_ray.runs.run import Run, threads
from dynopt_ray.runs.specs import (
    AdaptSpec,
    DemoSpec,
    PolicySpec,
    PruneSpec,
    SearchSpec,
    Spec,
    StreamSpec,
)

Action = Callable[[Run], None]
"""Carries out a run: everything that takes long or writes."""


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        spec: what its specs may say.
        runner: `module:function`, from a spec to an `Action`. It is imported at its first use,
            and raises what is wrong with the spec's task, files or arguments.
        on_cluster: whether it runs on a Ray cluster.
    """

    spec: type[Spec]
    runner: str
    on_cluster: bool = True


KINDS: Mapping[str, Kind] = {
    "prune": Kind(PruneSpec, "dynopt_ray.runs.runners.prune:prepare", on_cluster=False),
    "search": Kind(SearchSpec, "dynopt_ray.runs.runners.search:prepare"),
    "policy": Kind(PolicySpec, "dynopt_ray.runs.runners.policy:prepare"),
    "adapt": Kind(AdaptSpec, "dynopt_ray.runs.runners.adapt:prepare", on_cluster=False),
    "stream": Kind(StreamSpec, "dynopt_ray.runs.runners.stream:prepare"),
    "demo": Kind(DemoSpec, "dynopt_ray.runs.runners.demo:prepare"),
}


def check_address(kind: str, address: str) -> None:
    """Refuse an address before anything starts.

    Raises:
        SpecError: runs of this kind use no cluster.
        ClusterError: nobody answers there.
    """
    if not KINDS[kind].on_cluster:
        on_cluster = ", ".join(name for name, known in KINDS.items() if known.on_cluster)
        raise SpecError(
            f"--address {address}: a run of kind {kind} uses no cluster (these do: {on_cluster})"
        )
    from dynopt_ray.cluster.session import check_reachable

    check_reachable(address)


def prepare(spec: Spec) -> Action:
    """Make ready for a run without writing anything.

    Raises:
        DynoptError: data, files or arguments that the spec names are missing or wrong.
    """
    runner = cast(Callable[[Spec], Action], plugins.import_attribute(KINDS[spec.kind].runner))
    with threads(spec.num_threads):
        return runner(spec)
