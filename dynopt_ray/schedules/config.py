"""Schedules from plain data, as specs write them."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.errors import PluginError, SpecError
from dynopt_ray.plugins import build
from dynopt_ray.schedules.base import Schedule


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a mapping describes.

    Args:
        config: `name`, the name of a schedule (built in, a plugin's, or `module:attribute`),
            and its arguments. Where an argument is a schedule, or a list of them, it is
            written as such a mapping too.

    Raises:
        UnknownNameError: no schedule of this name, with the closest match.
        SpecError: no mapping, or one without `name`; an argument that the schedule does not
            have (with the closest match), that is missing or that it refuses.
        PluginError: the plugin cannot be imported or does not make a schedule.

    Example:
        >>> from_config({"name": "cosine", "initial": 0.1, "num_steps": 100})
        cosine(initial=0.1, num_steps=100, final=0.0)
        >>> inner = {"name": "constant", "value": 0.1}
        >>> from_config({"name": "warmup", "num_steps": 10, "schedule": inner})
        warmup(schedule=constant(value=0.1), num_steps=10, initial=0.0)
    """
    if not isinstance(config, Mapping):
        raise SpecError(
            f"a schedule is written as a mapping with a 'name', not {config!r}; for a fixed value "
            f"write {{'name': 'constant', 'value': {config!r}}}"
        )
    arguments = {key: _resolve(value) for key, value in config.items()}
    schedule: Schedule = build("schedules", arguments)
    if not callable(schedule):
        raise PluginError(
            f"schedule {config['name']!r} made {schedule!r}, which is not a function of the step"
        )
    return schedule


def _resolve(value: Any) -> Any:
    """Schedules in place of the mappings that describe them."""
    if isinstance(value, Mapping):
        return from_config(value)
    if isinstance(value, list | tuple):
        return [_resolve(item) for item in value]
    return value
