"""Load and check specs, given by file or by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dynopt_ray
from dynopt_ray.errors import SpecError, did_you_mean, short
from dynopt_ray.runs.kinds import KINDS
from dynopt_ray.runs.spec import Spec, dump, parse, validated, with_overrides


def packaged() -> dict[str, Path]:
    """Return the specs that come with the package: name -> file."""
    package = Path(dynopt_ray.__file__).parent
    # A wheel has them inside the package, a checkout next to it.
    for directory in (package / "experiments", package.parent / "experiments"):
        found = {path.stem: path for path in sorted(directory.glob("*.yaml"))}
        if found:
            return found
    return {}


def find(spec: str) -> Path:
    """Return the file of a spec, given its path or the name of a packaged spec.

    Raises:
        SpecError: there is no such file or name; the message suggests the closest name.
    """
    path = Path(spec)
    if path.is_file():
        return path
    known = packaged()
    if spec in known:
        return known[spec]
    if path.suffix in (".yaml", ".yml") or path.name != spec:
        what = "is a directory" if path.is_dir() else "does not exist"
        raise SpecError(f"the spec {spec} {what}; give a YAML file or one of {', '.join(known)}")
    raise SpecError(
        f"no spec {short(spec)}.{did_you_mean(spec, known)} Known: {', '.join(known)}. "
        "Or give the path of a YAML file."
    )


def load_spec(spec: str, overrides: Iterable[str] = ()) -> Spec:
    """Load a spec from a file or by name, and check it.

    Args:
        spec: a path, or the name of a packaged spec.
        overrides: strings of the form `path=value`; see `with_overrides`.

    Raises:
        SpecError: there is no such spec, or it has mistakes; one message lists them all.
    """
    path = find(spec)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the spec {path}: {error}") from error
    data = parse(text, source=str(path))
    if not isinstance(data, Mapping):
        raise SpecError(f"{path}: a spec is a mapping with 'kind', not {short(data)}")
    return check_spec(with_overrides(data, overrides), source=str(path))


def check_spec(data: Mapping[str, Any], *, source: str) -> Spec:
    """Return the spec that plain data describe.

    Args:
        data: a mapping with `kind`, which determines the other keys.
        source: where the data come from, for messages.

    Raises:
        SpecError: there are wrong keys, types or values; one message lists them all.

    Example:
        >>> data = {"kind": "prune", "task": "digits-mlp", "train": {"num_steps": 9, "lr": 0.1}}
        >>> spec = check_spec({**data, "prune": {"target": {"remove": 0.5}}}, source="example")
        >>> spec.seed
        0
    """
    kind, known = data.get("kind"), ", ".join(KINDS)
    if kind is None:
        raise SpecError(f"{source}: kind: missing; it is one of {known}")
    if not isinstance(kind, str) or kind not in KINDS:
        close = did_you_mean(str(kind), KINDS)
        raise SpecError(f"{source}: kind: no kind {short(kind)}.{close} Known: {known}.")
    return validated(KINDS[kind].spec_of(data), data, source=source)


def spec_text(spec: Spec) -> str:
    """Return a spec as YAML, with every default; `load_spec` reads it back to an equal spec."""
    return dump(spec.model_dump(mode="json"))
