"""Making a plugin from plain data: its name and its factory's arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dynopt_ray import plugins
from dynopt_ray.errors import DynoptError, PluginError, SpecError, did_you_mean


def build(family: plugins.Family, config: Mapping[str, Any]) -> Any:
    """What the factory called `config["name"]` makes of the other entries.

    Args:
        family: where the name is looked up.
        config: `name` and the factory's keyword arguments.

    Raises:
        UnknownNameError: no plugin of this name, with the closest match.
        SpecError: no `name`; an argument that the factory does not have (with the closest
            match), that is missing, or that it refuses with TypeError or ValueError.
        PluginError: the plugin cannot be imported or cannot be called.
    """
    name = config.get("name")
    if not isinstance(name, str):
        raise SpecError(
            f"{dict(config)!r} has no 'name', the name of one of the {family}; "
            f"known: {', '.join(plugins.names(family))}"
        )
    factory = plugins.load(family, name)
    if not callable(factory):
        raise PluginError(f"{name!r} of {family} is {factory!r}, which is not a factory")
    arguments = {key: value for key, value in config.items() if key != "name"}
    _check_arguments(name, factory, arguments)
    try:
        return factory(**arguments)
    except DynoptError:
        raise  # these say it all, and callers tell them apart
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name!r} refuses its arguments: {error}") from error


def _check_arguments(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Unknown and missing arguments, found before the call so that they can be named."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError as error:  # some functions written in C have none
        raise PluginError(f"{name!r} is not a factory that can be inspected: {error}") from error
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for argument in arguments:
            if argument not in known:
                raise SpecError(
                    f"{name!r} has no argument {argument!r}.{did_you_mean(argument, known)} "
                    f"Known: {', '.join(known) or 'none'}."
                )
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise SpecError(f"{name!r} needs {', '.join(missing)}")
