"""Facts about a run for its manifest: versions, hardware and commit."""

import importlib.metadata
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import dynopt_ray

_PACKAGES = ("torch", "ray", "numpy", "gymnasium", "river", "optuna", "scikit-learn", "pandas")


def versions() -> dict[str, str]:
    """Return the versions of Python, dynopt_ray and the packages that results depend on.

    Packages that are not installed are left out.
    """
    found = {"python": platform.python_version(), "dynopt_ray": dynopt_ray.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Describe the machine that the run was started on; workers may run on others."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
    }


def commit(directory: Path) -> dict[str, Any] | None:
    """Return the commit of a git checkout and whether tracked files differ; None outside git.

    `changed_files` is None if that cannot be found out.
    """
    places = ("--show-toplevel", "--git-path", "objects", "--git-path", "index")
    found = _git(directory, "rev-parse", *places, "HEAD")
    lines = [] if found is None else found.splitlines()
    if len(lines) != 4:
        return None
    top, objects, index = (directory.absolute() / line for line in lines[:3])
    with tempfile.TemporaryDirectory() as empty:
        changed = _git(
            directory,
            *("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"),
            environment=_unconfigured(Path(empty), lines[3], top=top, objects=objects, index=index),
        )
    return {"hash": lines[3], "changed_files": None if changed is None else bool(changed)}


def _unconfigured(git: Path, head: str, *, top: Path, objects: Path, index: Path) -> dict[str, str]:
    """Make a git directory without configuration; return the environment in which git uses it.

    A checkout that somebody else packed may have settings in its own git directory that make `git
    status` run programs: a monitor of the file system, or filters of files.
    """
    for name in ("objects", "refs"):
        (git / name).mkdir()
    (git / "HEAD").write_text(f"{head}\n")
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **own,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_DIR": str(git),
        "GIT_WORK_TREE": str(top),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_INDEX_FILE": str(index),
    }


def _git(directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError, AttributeError):
        return None
