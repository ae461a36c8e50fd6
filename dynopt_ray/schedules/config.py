"""Make schedules from plain data, as specs contain them."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.errors import PluginError, SpecError
from dynopt_ray.plugins import build
from dynopt_ray.schedules.base import Schedule


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule that a mapping describes.

    Args:
        config: `name`, the name of a schedule (built in, a plugin's, or `module:attribute`),
            and the arguments of the schedule. An argument that is itself a schedule, or a list of
            schedules, is written as such a mapping too.

    Raises:
        UnknownNameError: the schedule is unknown; the message names the closest match.
        SpecError: `config` is not a mapping or has no `name`; or an argument is unknown (the
            message names the closest match), missing, or refused by the schedule.
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
    """Replace mappings by the schedules that they describe, also in lists."""
    if isinstance(value, Mapping):
        return from_config(value)
    if isinstance(value, list | tuple):
        return [_resolve(item) for item in value]
    return value
