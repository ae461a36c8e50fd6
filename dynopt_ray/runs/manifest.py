"""Facts about a run for its manifest: versions, hardware and commit."""

import importlib.metadata
import os
import platform
import subprocess
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
    """Return the commit of a git checkout and whether tracked files differ; None outside git."""
    head = _git(directory, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"hash": head, "changed_files": bool(changed)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10
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
