"""How the packages hang together: layers, faces, no cycles, light imports, sizes, docstrings."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import dynopt_envs
import dynopt_ray

ROOTS = {
    "dynopt_ray": Path(dynopt_ray.__file__).parent,
    "dynopt_envs": Path(dynopt_envs.__file__).parent,
}
FILES = {
    (path.parent if path.name == "__init__.py" else path.with_suffix(""))
    .relative_to(root.parent)
    .as_posix()
    .replace("/", "."): path
    for root in ROOTS.values()
    for path in sorted(root.rglob("*.py"))
}
"""Module -> its file, of both packages."""

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "arrays",
            "deprecation",
            "devices",
            "errors",
            "interrupts",
            "plugin_families",
            "plugins",
            "storage",
            "transfers",
        }
    ),
    frozenset({"journals"}),
    frozenset({"structure", "schedules"}),
    frozenset({"criteria"}),
    frozenset({"tasks"}),
    frozenset({"training", "population"}),
    frozenset({"policies"}),
    frozenset({"online"}),
    frozenset({"cluster"}),
    frozenset({"runs"}),
    frozenset({"commands"}),
    frozenset({"cli"}),
)
HEAVY = ("ray", "pandas", "matplotlib", "sklearn", "plotly", "optuna", "river", "scipy")
LARGEST_FOLDER = 16
LARGEST_FILE = 400
FAMILIES = {
    "dynopt_ray.criteria",
    "dynopt_ray.policies.rules",
    "dynopt_ray.structure.tracing.rules",
}
"""Folders of like members, which may hold any number of them."""


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in FILES
        for imported, _ in imports(module)
        if layer(module) and layer(imported) and rank(imported) > rank(module)
    ]
    assert not wrong


def test_only_cluster_imports_ray() -> None:
    wrong = [
        module
        for module, path in FILES.items()
        if not module.startswith("dynopt_ray.cluster") and "ray" in foreign_imports(path)
    ]
    assert not wrong


def test_the_library_does_not_import_its_environments() -> None:
    wrong = [
        module
        for module, path in FILES.items()
        if module.startswith("dynopt_ray") and "dynopt_envs" in foreign_imports(path)
    ]
    assert not wrong


def test_packages_are_used_through_their_faces() -> None:
    """From outside a package only what its `__init__` lists, and from nowhere deeper."""
    wrong = []
    for module in FILES:
        for imported, name in imports(module):
            face = first_apart(module, imported)
            if imported != face:
                wrong.append(f"{module} reaches into {imported}; its face is {face}")
            elif name and is_package(face) and name not in public_names(face):
                wrong.append(f"{module} imports {name}, which {face} does not offer")
    assert not wrong


def test_there_is_no_cycle_of_imports() -> None:
    """Imports within functions and for types count too."""
    assert not cycle({module: edges(module) for module in FILES})


def test_folders_are_small() -> None:
    sizes = {
        module: len([child for child in children(module) if not is_package(child)])
        for module in FILES
        if is_package(module) and module not in FAMILIES
    }
    assert {module: size for module, size in sizes.items() if size > LARGEST_FOLDER} == {}


def test_files_are_small() -> None:
    files = [*FILES.values(), *Path(__file__).parent.rglob("*.py")]
    lengths = {path.name: len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LARGEST_FILE} == {}


def test_no_name_hides_a_module() -> None:
    """`from package import name` means one thing: a module, or what the face offers."""
    wrong = [
        f"{module}.{name}"
        for module in FILES
        if is_package(module)
        for name in public_names(module)
        if f"{module}.{name}" in FILES and not isinstance(face_value(module, name), ModuleType)
    ]
    assert not wrong


def test_a_class_name_has_one_meaning() -> None:
    """A reader of one package is not misled by a class of the same name in another."""
    homes: dict[str, list[str]] = {}
    for module, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            for name in defined_types(node):
                homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_top_level_import_is_light() -> None:
    assert loaded_by("import dynopt_ray", HEAVY) == []


def test_what_needs_no_ray_does_not_import_it() -> None:
    """Nor do the faces that draw import what draws. One process, as each start takes seconds."""
    statements = [
        "import dynopt_ray.cluster",
        "import dynopt_ray.training.loop.stored_networks",
        "from dynopt_ray.training import plot_sensitivity",
        "from dynopt_ray.policies import DQNSettings",
        "from dynopt_ray.cluster import Measurement, PruneTrial, SearchResult, Space",
        "from dynopt_ray.runs import load_spec; load_spec('search', []); load_spec('policy', [])",
    ]
    check = "assert not {'ray', 'matplotlib'} & sys.modules.keys(), %r"
    code = [line for statement in statements for line in (statement, check % statement)]
    subprocess.run([sys.executable, "-c", "\n".join(["import sys", *code])], check=True)


@pytest.mark.ray
def test_only_policy_training_waits_for_rllib() -> None:
    assert loaded_by("from dynopt_ray.cluster import search, session", ("ray.rllib",)) == []
    assert loaded_by("from dynopt_ray.cluster import train_policy", ("ray.rllib",)) == ["ray.rllib"]


@pytest.mark.parametrize("package", list(ROOTS))
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


def test_every_face_offers_what_it_lists() -> None:
    for module in FILES:
        if is_package(module):
            for name in public_names(module):
                assert face_value(module, name) is not None, f"{module}.{name}"


def test_the_checks_notice() -> None:
    """What the rules are made of, on examples that break them."""
    assert first_apart("dynopt_ray.training.loop.rows", "dynopt_ray.structure.plans.edits") == (
        "dynopt_ray.structure"
    )
    assert first_apart("dynopt_ray.structure.graph", "dynopt_ray.structure.plans.edits") == (
        "dynopt_ray.structure.plans"
    )
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert rank("dynopt_ray.cluster") > rank("dynopt_ray.online.drift")


def modules(package: str) -> Iterator[ModuleType]:
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(info.name)


@cache
def imports(module: str) -> tuple[tuple[str, str | None], ...]:
    """The modules of our packages that one imports, each with the name taken from it."""
    found: list[tuple[str, str | None]] = []
    for node in nodes(FILES[module]):
        if isinstance(node, ast.ImportFrom):
            # Only the stubs of lazy faces import relatively, from within their package.
            source = f"{module}.{node.module}" if node.level else str(node.module)
            if is_ours(source):
                for alias in node.names:
                    submodule = f"{source}.{alias.name}"
                    found.append((submodule, None) if submodule in FILES else (source, alias.name))
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names if is_ours(alias.name)]
    return tuple(found)


def nodes(path: Path) -> Iterator[ast.AST]:
    """All of a file, and of the stub that says what a lazy face offers."""
    for file in (path, path.with_suffix(".pyi")):
        if file.exists():
            yield from ast.walk(ast.parse(file.read_text()))


def defined_types(node: ast.stmt) -> list[str]:
    """The public classes and type aliases that a statement defines."""
    if isinstance(node, ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    else:
        return []
    return [name for name in names if name[0].isupper() and not name.isupper()]


def foreign_imports(path: Path) -> set[str]:
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ROOTS


def is_package(module: str) -> bool:
    return FILES[module].name == "__init__.py"


def parents(module: str) -> list[str]:
    """The packages that a module lies in, itself included if it is one."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + is_package(module))]


def children(package: str) -> list[str]:
    return [m for m in FILES if m.rpartition(".")[0] == package]


def first_apart(module: str, imported: str) -> str:
    """The outermost package (or module) that holds `imported` but not `module`."""
    around = parents(module)
    parts = imported.split(".")
    first = 1 if parts[0] == module.split(".")[0] else 2  # `dynopt_ray` itself offers nothing
    for n in range(first, len(parts) + 1):
        if (prefix := ".".join(parts[:n])) not in around:
            return prefix
    return imported


def edges(module: str) -> set[str]:
    return {imported for imported, _ in imports(module)} - {module}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle, or nothing."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or module not in graph:
            return []
        for imported in sorted(graph[module]):
            if found := visit(imported, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


@cache
def public_names(package: str) -> tuple[str, ...]:
    return tuple(getattr(importlib.import_module(package), "__all__", ()))


def face_value(package: str, name: str) -> object:
    return getattr(importlib.import_module(package), name)


def loaded_by(statement: str, names: tuple[str, ...]) -> list[str]:
    code = f"{statement}; import sys; print(*[m for m in {names!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.split()


def layer(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "dynopt_ray" or len(parts) == 1 or parts[1] == "testing":
        return None
    return parts[1]


def rank(module: str) -> int:
    name = layer(module)
    for index, members in enumerate(LAYERS):
        if name in members:
            return index
    # `testing` holds kits for plugin authors: it may import everything, nothing imports it.
    return len(LAYERS)
