"""Build objects from plain data: a name, or a mapping with a name and options."""

import inspect
from collections.abc import Mapping
from typing import Any

from dynopt_ray.errors import SpecError, did_you_mean


def make_by_name(
    config: str | Mapping[str, Any], what: str, known: Mapping[str, Any], **given: Any
) -> Any:
    """Build the object that a configuration describes.

    Args:
        config: a name, or a mapping with "name" and the arguments of its factory.
        what: what to call the object in messages.
        known: name -> factory.
        given: arguments that this library supplies. `config` must not contain them.

    Raises:
        SpecError: the configuration is malformed, names an unknown factory, or has arguments that
            the factory lacks or refuses.
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
    """Split a configuration into its name and its options.

    Raises:
        SpecError: the configuration is neither a name nor a mapping with a name, or the name is
            unknown.
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
