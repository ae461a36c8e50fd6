"""Make tasks from plain data, as specs contain it and workers receive it."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.errors import PluginError
from dynopt_ray.plugins import build
from dynopt_ray.tasks.task import Task


def load_task(spec: str | Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Task:
    """Make a task from its name and the options of its factory.

    Args:
        spec: a name (built in, a plugin's, or `module:function`), or a mapping of `name` and
            options.
        options: more options; an option must not be in `spec` too.

    Raises:
        UnknownNameError: the task is unknown; the message names the closest match.
        SpecError: an option is unknown (the message names the closest match), missing, given
            twice, or refused by the task.
        PluginError: the plugin cannot be imported or does not return a task.
        DataError: the task's data are missing or cannot be learned from.

    Example:
        >>> load_task({"name": "digits-mlp", "hidden": [16]})
        Task('digits-mlp', splits=train, validation, test, device=cpu)
    """
    task = build("tasks", spec, **(options or {}))
    if not isinstance(task, Task):
        raise PluginError(
            f"task {spec!r} made {task!r}; its function must return a Task, from "
            f"Task.from_arrays or Task.from_loaders"
        )
    return task
