"""Ask every node of a cluster for its versions, and whether it can use the storage of a run."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypedDict

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import dynopt_ray
from dynopt_ray.cluster.sessions.preflight import Node, probe_name, unusable, write_and_read
from dynopt_ray.errors import CheckpointError, ClusterError
from dynopt_ray.journals import store_at

_log = logging.getLogger("dynopt_ray.session")

# A node whose processes start for the first time needs some seconds.
_ANSWER_S = 60.0


class NodeFacts(TypedDict):
    """What a node tells about itself.

    Attributes:
        versions: package -> its version, or "missing".
        dashboard: the address of the cluster's dashboard; empty if there is none.
        storage: why the node cannot use the storage that it sees; empty if it can.
    """

    versions: dict[str, str]
    dashboard: str
    storage: str


def versions_here() -> dict[str, str]:
    """Return the versions that all nodes must agree on."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {
        "python": python,
        "ray": ray.__version__,
        "torch": version("torch"),
        "dynopt_ray": dynopt_ray.__version__,
    }


def ask_nodes(
    nodes: Sequence[Node], storage: str | os.PathLike[str] | None
) -> list[tuple[Node, NodeFacts]]:
    """Return what each node tells. Nodes that die meanwhile are left out.

    Args:
        nodes: the nodes.
        storage: the directory or URI that they try, or None.

    Raises:
        ClusterError: no node answers.
    """
    directory = "" if storage is None else os.path.abspath(storage)
    if storage is not None and "://" in os.fspath(storage):
        directory = os.fspath(storage)
    mark = probe_name()
    ask = ray.remote(num_cpus=0, max_retries=0)(_probe())
    if directory:
        store_at(directory).put(mark, b"")
    try:
        asked = {
            ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            ).remote(directory, mark): node
            for node in nodes
        }
        answers = _answers(asked)
    finally:
        if directory:
            store_at(directory).delete(mark)
    if not answers:
        raise ClusterError(
            f"none of the {len(nodes)} nodes of the cluster starts a process; look at its logs"
        )
    return answers


def _answers(asked: Mapping[Any, Node]) -> list[tuple[Node, NodeFacts]]:
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    answers: list[tuple[Node, NodeFacts]] = []
    for reference in ready:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except ray.exceptions.RayError as error:
            _log.warning("the node %s does not answer: %s", asked[reference].name, error)
    for reference in late:
        _log.warning("the node %s does not answer in %g s", asked[reference].name, _ANSWER_S)
    return answers


def check_answers(
    answers: Sequence[tuple[Node, NodeFacts]], storage: str | os.PathLike[str] | None
) -> None:
    """Refuse nodes with other versions than here, and nodes that cannot use the storage.

    Raises:
        ClusterError: the message names every such node.
    """
    here = versions_here()
    wrong = [
        f"{node.name} has {package} {found}, not {here[package]}"
        for node, facts in answers
        for package, found in facts["versions"].items()
        if _public(found) != _public(here[package])
    ]
    if wrong:
        raise ClusterError(
            f"the nodes of the cluster have other versions than this process: {'; '.join(wrong)}. "
            "Results and states could not be exchanged; install the same versions everywhere"
        )
    unable = [f"node {node.name}: {f['storage']}" for node, f in answers if f["storage"]]
    if unable and storage is not None:
        raise unusable(os.fspath(storage), "; ".join(unable))


def _public(text: str) -> str:
    """Return a version without its local part: 2.9.0 for 2.9.0+cpu and 2.9.0+cu130."""
    return text.partition("+")[0]


def _probe() -> Callable[[str, str], Any]:
    def probe(directory: str, mark: str) -> dict[str, Any]:
        # Defined in a function, so that it is sent as code: the node may lack this package.
        import sys
        from importlib import metadata

        from ray._private.worker import get_dashboard_url

        found = {"python": ".".join(map(str, sys.version_info[:2]))}
        for package in ("ray", "torch"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "missing"
        dashboard = get_dashboard_url() or ""  # type: ignore[no-untyped-call]
        facts = {"versions": found, "dashboard": dashboard, "storage": ""}
        try:
            import dynopt_ray
        except ImportError:
            found["dynopt_ray"] = "missing"
            return facts
        found["dynopt_ray"] = dynopt_ray.__version__
        if directory:
            try:
                from dynopt_ray.cluster.sessions.node_probe import try_storage
            except ImportError as error:
                facts["storage"] = f"its dynopt_ray in {dynopt_ray.__path__[0]} is another: {error}"
            else:
                facts["storage"] = try_storage(directory, mark)
        return facts

    return probe


def try_storage(directory: str, mark: str) -> str:
    """Return why a node cannot use storage, or an empty text."""
    try:
        is_shared = mark in store_at(directory).names(mark.rpartition("/")[0])
    except (CheckpointError, OSError) as error:
        return str(error)
    if is_shared:
        return write_and_read(directory)
    # A node that does not see a directory sends its states and networks to the driver.
    return "it does not see what was written from here" if "://" in directory else ""
