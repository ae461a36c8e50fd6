"""The kinds of runs: what their specs may say, and what carries them out."""

from collections.abc import Callable, Mapping
from typing import cast

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError
from dynopt_ray.runs.kind import Kind, PreparedRun
from dynopt_ray.runs.kinds.adapt import AdaptSpec
from dynopt_ray.runs.kinds.demo import DemoSpec
from dynopt_ray.runs.kinds.policy import PolicySpec
from dynopt_ray.runs.kinds.prune import PruneSpec
from dynopt_ray.runs.kinds.search import SearchSpec
from dynopt_ray.runs.kinds.stream import StreamSpec
from dynopt_ray.runs.run import threads
from dynopt_ray.runs.spec import Spec

KINDS: Mapping[str, Kind] = {
    "prune": Kind(PruneSpec, "dynopt_ray.runs.kinds.prune:prepare", on_cluster=False),
    "search": Kind(SearchSpec, "dynopt_ray.runs.kinds.search:prepare"),
    "policy": Kind(PolicySpec, "dynopt_ray.runs.kinds.policy:prepare"),
    "adapt": Kind(AdaptSpec, "dynopt_ray.runs.kinds.adapt:prepare", on_cluster=False),
    "stream": Kind(StreamSpec, "dynopt_ray.runs.kinds.stream:prepare"),
    "demo": Kind(DemoSpec, "dynopt_ray.runs.kinds.demo:prepare"),
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
    from dynopt_ray.cluster import check_reachable

    check_reachable(address)


def prepare(spec: Spec) -> PreparedRun:
    """Make ready for a run without writing anything.

    Raises:
        DynoptError: data, files or arguments that the spec names are missing or wrong.
    """
    runner = cast(Callable[[Spec], PreparedRun], plugins.import_attribute(KINDS[spec.kind].runner))
    with threads(spec.num_threads):
        return runner(spec)
