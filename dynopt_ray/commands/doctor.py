"""`dynopt doctor`: examine whether this machine, or a cluster, has what runs need."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement

import dynopt_ray
from dynopt_ray.cluster import check_storage, session, this_machine
from dynopt_ray.errors import DynoptError
from dynopt_ray.plugins import FAMILIES, import_attribute, plugins

_DISTRIBUTION = "dynopt-ray"


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        what: what was examined.
        state: "ok", "note" for what some runs lack, "missing" for what every run needs.
        text: what was found.
    """

    what: str
    state: Literal["ok", "note", "missing"]
    text: str


def examine(address: str | None, storage: str) -> Iterator[Finding]:
    """Examine versions, devices, Ray, storage, data and plugins, one after the other.

    Args:
        address: the address of a cluster to join. None starts Ray on this machine for a moment.
        storage: the directory or URI to which runs will be written.
    """
    yield Finding("Python", "ok", platform.python_version())
    yield from _packages()
    yield from _devices()
    yield _ray(address, storage)
    yield _storage(storage)
    yield from _data()
    yield from _plugins()


def _packages() -> Iterator[Finding]:
    yield Finding("dynopt_ray", "ok", dynopt_ray.__version__)
    try:
        required = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "missing", f"{_DISTRIBUTION} is not installed; only its files")
        return
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "missing", f"not installed; pip install '{requirement}'")
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, "ok", version)
    return Finding(
        requirement.name,
        "missing",
        f"{version} does not fit {requirement.specifier}; pip install '{requirement}'",
    )


def _devices() -> Iterator[Finding]:
    import torch

    machine = this_machine()
    yield Finding("CPUs", "ok", f"{machine.cpus:g}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        yield Finding("GPUs", "ok", ", ".join(names))
    else:
        yield Finding("GPUs", "note", "none that torch can use; runs use the CPUs")


def _ray(address: str | None, storage: str) -> Finding:
    try:
        with session(address, storage=storage) as joined:
            nodes = "; ".join(node.described for node in joined.nodes)
    except DynoptError as error:
        return Finding("Ray", "missing", str(error))
    how = "starts on this machine" if joined.started else f"joined {joined.address}"
    return Finding("Ray", "ok", f"{how}: {nodes}")


def _storage(directory: str) -> Finding:
    try:
        check_storage(directory)
    except DynoptError as error:
        return Finding("storage", "missing", str(error))
    if "://" in directory:
        return Finding("storage", "ok", f"{directory} can be written and read")
    free = shutil.disk_usage(directory).free / 2**30
    return Finding("storage", "ok", f"{os.path.abspath(directory)} has {free:.1f} GiB free")


def _data() -> Iterator[Finding]:
    yield Finding("data: digits", "ok", "part of scikit-learn")
    found = import_attribute("dynopt_ray.tasks.builtin.fashion_mnist:fashion_mnist_directory")()
    if found is None:
        text = "not here; downloaded from OpenML when a run needs it, or see DYNOPT_DATA"
        yield Finding("data: Fashion-MNIST", "note", text)
    else:
        yield Finding("data: Fashion-MNIST", "ok", str(found))


def _plugins() -> Iterator[Finding]:
    checked = [plugin.check() for family in FAMILIES for plugin in plugins(family)]
    broken = [plugin for plugin in checked if plugin.error]
    for plugin in broken:
        yield Finding(f"plugin {plugin.name}", "note", f"broken: {plugin.error}")
    yield Finding("plugins", "ok", f"{len(checked) - len(broken)} can be used")
