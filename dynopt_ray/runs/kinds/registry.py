"""Find the kinds of runs by name, and prepare runs of any kind."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError
from dynopt_ray.runs.kind import Kind, PreparedRun
from dynopt_ray.runs.run import threads
from dynopt_ray.runs.spec import Spec, validated


def _found() -> dict[str, Kind]:
    """Import every package next to this file, and return its `KIND` by the package's name."""
    here = Path(__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(here)]) if module.ispkg)
    return {name: importlib.import_module(f"{__package__}.{name}").KIND for name in names}


KINDS: Mapping[str, Kind] = _found()
"""The kinds of runs by name. To add one, add a folder with `KIND`, a spec and a runner."""


def check_address(kind: str, address: str) -> None:
    """Refuse the address of a cluster that a run cannot use, before anything starts.

    Raises:
        SpecError: runs of this kind use no cluster.
        ClusterError: nothing answers at the address.
    """
    if KINDS[kind].need is None:
        on_cluster = ", ".join(name for name, known in KINDS.items() if known.need is not None)
        raise SpecError(
            f"--address {address}: a run of kind {kind} uses no cluster (these do: {on_cluster})"
        )
    from dynopt_ray.cluster import check_reachable

    check_reachable(address)


def check_can_start(spec: Spec) -> None:
    """Refuse a run without an address that needs Ray if Ray could not be started on this machine.

    Raises:
        ClusterError: Ray's own files or its token cannot be written.
    """
    need = KINDS[spec.kind].need
    if need is not None and need(spec) is not None:
        from dynopt_ray import cluster

        cluster.check_can_start()


def prepare(spec: Spec) -> PreparedRun:
    """Check everything that a spec names, and return the prepared run. Write nothing.

    This runs the code that the spec names as `module:attribute`.

    Raises:
        DynoptError: data, files or arguments that the spec names are missing or wrong.
    """
    runner = cast(Callable[[Spec], PreparedRun], plugins.import_attribute(KINDS[spec.kind].runner))
    plain = spec.model_dump(mode="json")
    if plugins.names_code(plain):
        validated(type(spec), plain, source="the spec", run_code=True)
    with threads(spec.num_threads):
        return runner(spec)
