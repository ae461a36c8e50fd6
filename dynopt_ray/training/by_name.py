"""Things from plain data: a name, or a mapping of a name and options."""

import inspect
from collections.abc import Mapping
from typing import Any

from dynopt_ray.errors import SpecError, did_you_mean


def make_by_name(
    config: str | Mapping[str, Any], what: str, known: Mapping[str, Any], **given: Any
) -> Any:
    """What a name, or a mapping of it and its arguments, describes.

    Args:
        config: either of them.
        what: what to call it in messages.
        known: name -> what makes it.
        given: arguments that are ours to give.
    """
    name, options = name_and_options(config, what, known)
    arguments = [p for p in inspect.signature(known[name]).parameters if p not in given]
    for option in options:
        if option not in arguments:
            raise SpecError(
                f"{name!r} has no argument {option!r}.{did_you_mean(option, arguments)} "
                f"Known: {', '.join(arguments)}."
            )
    try:
        return known[name](**given, **options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{what} {name!r} refuses its arguments: {error}") from error


def name_and_options(
    config: str | Mapping[str, Any], what: str, known: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """A name and its options, from a name alone or a mapping.

    Raises:
        SpecError: it is neither, or no such name is known.
    """
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, Mapping) or "name" not in config:
        raise SpecError(f"{config!r} is neither a name nor a mapping with 'name' for the {what}")
    name = config["name"]
    if name not in known:
        raise SpecError(
            f"no {what} {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
        )
    return str(name), {key: value for key, value in config.items() if key != "name"}
