"""Tasks from plain data, as specs write them and workers read them."""

from collections.abc import Mapping
from typing import Any

from dynopt_ray.errors import PluginError
from dynopt_ray.plugins import build
from dynopt_ray.tasks.task import Task


def load_task(spec: str | Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Task:
    """The task of a name, with the options of its factory.

    Args:
        spec: a name (built in, a plugin's, or `module:function`), or a mapping of `name` and
            options.
        options: more options; none may be in the mapping too.

    Raises:
        UnknownNameError: no task of this name, with the closest match.
        SpecError: an option that the task does not have (with the closest match), that is
            missing, given twice, or refused.
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
