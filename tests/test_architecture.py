"""The layers: imports point one way, `import dynopt_ray` is light, public names are documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import dynopt_ray

ROOT = Path(dynopt_ray.__file__).parent
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "interrupts", "plugins", "storage"}),
    frozenset({"structure", "schedules"}),
    frozenset({"criteria"}),
    frozenset({"tasks", "training", "population"}),
    frozenset({"policies", "online"}),
    frozenset({"cluster"}),
    frozenset({"runs"}),
    frozenset({"cli"}),
)
HEAVY = ("ray", "pandas", "matplotlib", "sklearn", "plotly", "optuna", "river", "scipy")


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in ROOT.rglob("*.py")
        for imported in imported_layers(path)
        if layer_of(path) is not None and rank(imported) > rank(str(layer_of(path)))
    ]
    assert not wrong


def test_only_cluster_imports_ray() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] != "cluster" and "ray" in top_level_imports(path)
    ]
    assert not wrong


def test_the_library_does_not_import_its_environments() -> None:
    assert not [path for path in ROOT.rglob("*.py") if "dynopt_envs" in top_level_imports(path)]


def test_top_level_import_is_light() -> None:
    code = f"import dynopt_ray, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.ray
def test_only_policy_training_waits_for_rllib() -> None:
    code = (
        "import sys, dynopt_ray.cluster as cluster; print('ray.rllib' in sys.modules);"
        "cluster.train_policy; print('ray.rllib' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("package", ["dynopt_ray", "dynopt_envs"])
def test_public_names_have_docstrings(package: str) -> None:
    missing = [
        f"{module.__name__}.{name}"
        for module in modules(package)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not value.__doc__
    ]
    assert not missing


def modules(package: str) -> Iterator[ModuleType]:
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(info.name)


def imported_layers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "dynopt_ray" and len(parts) > 1:
                found.add(parts[1])
    return found


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def layer_of(path: Path) -> str | None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return None if part in {"__init__", "testing"} else part


def rank(layer: str) -> int:
    for index, members in enumerate(LAYERS):
        if layer in members:
            return index
    # `testing` holds kits for plugin authors: it may import everything, nothing imports it.
    return len(LAYERS)
