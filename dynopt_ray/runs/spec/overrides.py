"""Overrides (`--set a.b=c`): changes to the data of a spec before they are checked."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from dynopt_ray.errors import SpecError, short
from dynopt_ray.runs.spec.validation import dotted
from dynopt_ray.runs.spec.yaml_text import DEEPEST, parse


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a spec's data with some values replaced.

    Args:
        data: the spec as read from YAML.
        overrides: strings of the form `path=value`. The parts of the path are joined by dots; the
            part for a list is an index from 0. The value is YAML.

    Raises:
        SpecError: an override has no `=`, its path cannot be followed, or its value is not YAML.
            Keys and values are checked later, with the rest of the spec.

    Example:
        >>> with_overrides({"train": {"lr": 0.1}}, ["train.lr=1e-2", "seed=3"])
        {'train': {'lr': 0.01}, 'seed': 3}
    """
    result = copy.deepcopy(dict(data))
    for override in overrides:
        path, separator, text = override.partition("=")
        parts = path.strip().split(".")
        if not separator or not all(parts):
            raise SpecError(
                f"--set {short(override)} is not of the form path=value, e.g. train.lr=0.1"
            )
        if len(parts) > DEEPEST:
            raise SpecError(f"--set {short(override)}: the path has more than {DEEPEST} parts")
        _set(result, parts, parse(text, source=f"--set {short(override)}"), override)
    return result


def _set(data: dict[str, Any], parts: list[str], value: Any, override: str) -> None:
    place: Any = data
    for index, part in enumerate(parts):
        done = index == len(parts) - 1
        if isinstance(place, list):
            key: Any = _list_place(place, part, override)
        elif isinstance(place, dict):
            key = part
            if not done:
                place.setdefault(key, {})
        else:
            raise SpecError(
                f"--set {short(override)}: {dotted(parts[:index])} is {short(place)}, which has no "
                f"{short(part)} within it; set {dotted(parts[:index])} as a whole, to a mapping in "
                "{…}"
            )
        if done:
            place[key] = value
        else:
            place = place[key]


def _list_place(place: list[Any], part: str, override: str) -> int:
    if not place:
        raise SpecError(
            f"--set {short(override)}: the list is empty, so it has no place {short(part)}; set "
            "the whole list, e.g. to [1, 2]"
        )
    is_place = part.isascii() and part.isdigit() and len(part) <= len(str(len(place)))
    if not is_place or int(part) >= len(place):
        raise SpecError(
            f"--set {short(override)}: {short(part)} is not a place in a list of {len(place)}; "
            f"places are numbered 0 to {len(place) - 1}"
        )
    return int(part)
