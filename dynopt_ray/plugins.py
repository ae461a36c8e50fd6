"""Plugins: families of components that users can extend, looked up by name.

A name is looked up among the plugins registered in code, the built-in plugins, and the entry points
of installed packages in the group `dynopt_ray.<family>`, in this order. A path `module:attribute`
can be given instead of a name. Nothing is imported before its first use, so a broken plugin breaks
nothing else.
"""

import functools
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynopt_ray.errors import (
    DynoptError,
    PluginError,
    SpecError,
    UnknownNameError,
    described,
    did_you_mean,
    short,
)
from dynopt_ray.plugin_families import BUILT_IN, FAMILIES, Family

__all__ = [
    "BUILT_IN",
    "FAMILIES",
    "IN_CODE",
    "Family",
    "Plugin",
    "build",
    "check_name",
    "import_attribute",
    "load",
    "names",
    "names_code",
    "plugins",
    "register",
    "unregister",
]

IN_CODE = "code"
"""The source of plugins that `register` added."""

_registered: dict[tuple[Family, str], Any] = {}


@dataclass(frozen=True)
class Plugin:
    """One member of a family, as `dynopt plugins` lists it.

    Attributes:
        family: the family that the plugin belongs to.
        name: its name in specs and function arguments.
        target: `module:attribute`, or the object's repr if it was registered in code.
        source: "code", "built in" or the name of the distribution that provides it.
        shadowed_by: the source of the plugin of the same name that is used instead, or None.
        error: why it cannot be loaded, or None. `check` fills it in.
    """

    family: Family
    name: str
    target: str
    source: str
    shadowed_by: str | None = None
    error: str | None = None

    def check(self) -> "Plugin":
        """Try to load the plugin; return a copy with `error` set if that failed, else itself."""
        try:
            if self.source != IN_CODE:
                import_attribute(self.target)
        except PluginError as error:
            return replace(self, error=str(error))
        return self


def register(family: Family, name: str, plugin: Any) -> None:
    """Register `plugin` under `name` in this process.

    Workers do not see it. To use it there, name it as `module:attribute` or install an entry point.

    Raises:
        UnknownNameError: there is no such family.
        ValueError: another plugin already has this name, or the name contains a colon.
    """
    _check_family(family)
    if ":" in name:
        raise ValueError(
            f"plugin name {name!r} contains ':', which only module:attribute paths may"
        )
    for known in plugins(family):
        if known.name == name and _registered.get((family, name)) is not plugin:
            raise ValueError(
                f"{family} already has a {name!r} ({known.target}); choose another name"
            )
    _registered[family, name] = plugin


def unregister(family: Family, name: str) -> None:
    """Remove a plugin that `register` added.

    Raises:
        UnknownNameError: no plugin is registered under this name.
    """
    if (family, name) not in _registered:
        raise UnknownNameError(
            f"registered plugin of {family}", name, (n for f, n in _registered if f == family)
        )
    del _registered[family, name]


def load(family: Family, name: str) -> Any:
    """Return the plugin called `name`, which may be a path `module:attribute`.

    Raises:
        UnknownNameError: no plugin has this name; the message gives the closest match.
        PluginError: the plugin exists but cannot be imported.
    """
    _check_family(family)
    if (family, name) in _registered:
        return _registered[family, name]
    if ":" in name:
        return import_attribute(name)
    for plugin in plugins(family):
        if plugin.name == name:
            return import_attribute(plugin.target)
    raise UnknownNameError(_SINGULAR.get(family, family), name, names(family))


def check_name(family: Family, name: str) -> None:
    """Refuse a name that no plugin has, and a path that has not the form of one. Import nothing.

    Raises:
        UnknownNameError: no plugin has this name; the message gives the closest match.
        PluginError: the path is not of the form module:attribute.
    """
    _check_family(family)
    if ":" in name:
        _parts(name)
    elif name not in names(family):
        raise UnknownNameError(_SINGULAR.get(family, family), name, names(family))


def names(family: Family) -> list[str]:
    """Return the names of all plugins of a family, sorted."""
    return sorted({plugin.name for plugin in plugins(family)})


def names_code(value: Any) -> bool:
    """Return whether plain data may name code as `module:attribute`, at any depth.

    Using such data runs the code. Any text with a colon counts.
    """
    if isinstance(value, str):
        return ":" in value
    if isinstance(value, Mapping):
        return any(map(names_code, value.values()))
    return isinstance(value, list | tuple) and any(map(names_code, value))


def plugins(family: Family) -> Iterator[Plugin]:
    """Yield all plugins of a family without loading them; the first one of each name is used."""
    _check_family(family)
    first: dict[str, str] = {}
    for plugin in _all_plugins(family):
        yield replace(plugin, shadowed_by=first.get(plugin.name))
        first.setdefault(plugin.name, plugin.source)


def _all_plugins(family: Family) -> Iterator[Plugin]:
    for (registered_family, name), plugin in _registered.items():
        if registered_family == family:
            yield Plugin(family, name, short(plugin), IN_CODE)
    for name, target in BUILT_IN[family].items():
        yield Plugin(family, name, target, "built in")
    for name, target, source in _entry_points(family, tuple(sys.path)):
        yield Plugin(family, name, target, source)


@functools.cache
def _entry_points(family: Family, path: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    """Return name, target and distribution of a family's entry points on an import path."""
    del path  # finding them reads a file of every package, and searches look up thousands of names
    return tuple(
        (entry.name, entry.value, (entry.dist.name if entry.dist else None) or "entry point")
        for entry in importlib.metadata.entry_points(group=f"dynopt_ray.{family}")
    )


def import_attribute(path: str) -> Any:
    """Import the object that `module:attribute` names; the attribute may be dotted.

    Raises:
        PluginError: the module cannot be imported or lacks the attribute.
    """
    module_name, attribute = _parts(path)
    try:
        value: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A user's module can raise anything while it is imported, also SystemExit.
        raise PluginError(
            f"cannot import {module_name!r} for {path!r}: {described(error)}"
        ) from error
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise PluginError(
                f"{module_name!r} has no attribute {attribute!r} ({path!r})"
            ) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module's own `__getattr__` can raise anything too
            raise PluginError(
                f"cannot get {attribute!r} of {module_name!r}: {described(error)}"
            ) from error
    return value


def _parts(path: str) -> tuple[str, str]:
    """Return the module and the attribute that a path names."""
    module_name, _, attribute = path.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise PluginError(
            f"{short(path)} is not of the form module:attribute, e.g. 'my_package.x:thing'"
        )
    return module_name, attribute


def build(family: Family, config: str | Mapping[str, Any], /, **more: Any) -> Any:
    """Call a factory, given by its name, with its arguments and return the result.

    Args:
        family: the family of the factory.
        config: the factory's name, or a mapping of `name` and its keyword arguments.
        **more: further keyword arguments, which must not be in the mapping too.

    Raises:
        UnknownNameError: no plugin has this name; the message gives the closest match.
        SpecError: `config` has no `name`; an argument is unknown (the message gives the closest
            match), missing or given twice; or the factory refuses its arguments with a TypeError
            or ValueError.
        PluginError: the plugin cannot be imported or cannot be called.

    Example:
        >>> build("schedules", {"name": "constant", "value": 0.1}) == build(
        ...     "schedules", "constant", value=0.1
        ... )
        True
    """
    given = {"name": config} if isinstance(config, str) else config
    if not isinstance(given, Mapping):
        raise SpecError(
            f"a {_SINGULAR.get(family, family)} is given by name or as a mapping with a 'name', "
            f"not as {short(config)}"
        )
    name = given.get("name")
    if not isinstance(name, str):
        raise SpecError(
            f"{short(dict(given))} has no 'name', the name of one of the {family}; "
            f"known: {', '.join(names(family))}"
        )
    for key in sorted(more.keys() & given.keys()):
        raise SpecError(
            f"{name!r}: {key!r} is given twice: {short(given[key])} and {short(more[key])}"
        )
    factory = load(family, name)
    if not callable(factory):
        raise PluginError(f"{name!r} of {family} is {short(factory)}, which is not a factory")
    arguments = {key: value for key, value in {**given, **more}.items() if key != "name"}
    _check_arguments(name, factory, arguments)
    try:
        return factory(**arguments)
    except DynoptError:
        raise  # our own errors are clear already, and callers distinguish their types
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name!r} refuses its arguments: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's factory can raise anything, also SystemExit
        raise PluginError(f"{name!r} of {family} fails: {described(error)}") from error


_SINGULAR: dict[str, str] = {
    "criteria": "criterion",
    "schedules": "schedule",
    "tasks": "task",
    "rules": "rule",
    "actions": "action",
    "detectors": "detector",
    "lr_controllers": "LR controller",
    "reactions": "reaction",
    "searchers": "searcher",
    "schedulers": "scheduler",
    "trackers": "tracker",
}


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise UnknownNameError("plugin family", family, FAMILIES)


def _check_arguments(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse unknown and missing arguments before the call, so that the message can name them."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError as error:  # some functions written in C have no signature
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
