"""Checks of saved optimizer state: could this optimizer have made it?

A checksum only shows that a file is as it was written. Whoever writes a file can give it the
checksum that it needs, and state of a wrong shape would raise an error at the next step, when the
network has been changed already. So options and state are compared with those of a twin of the
optimizer, which has the saved options and has taken two steps.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dynopt_ray.errors import CheckpointError
from dynopt_ray.structure.plans.optimizer_devices import IMPLEMENTATION
from dynopt_ray.structure.plans.optimizer_state import StateEntry, state_after_steps

Entries = Mapping[str, Any]
"""The state of one parameter, or the options of one parameter group."""


def check_saved_state(
    optimizer: Optimizer,
    options: Sequence[Entries],
    states: Sequence[Sequence[Entries | None]],
) -> None:
    """Refuse options and state that the optimizer could not have.

    An optimizer of the user's own may keep state that a single step does not show. What is not
    known is accepted.

    Args:
        optimizer: the optimizer that the state is to be loaded into; it is not changed.
        options: the saved options of each parameter group.
        states: the saved state of each parameter of each group; None if there is none.

    Raises:
        CheckpointError: an option or an entry has another type, shape or range than it can have.
    """
    kind = type(optimizer).__name__
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, options, strict=True)):
        for name, value in saved.items():
            if name != "params" and not _option_fits(name, group.get(name), value):
                raise CheckpointError(
                    f"{kind} cannot have {name} = {value!r:.60} in parameter group {index}; it has "
                    f"{group.get(name)!r:.60} now"
                )
        trials: dict[Any, Mapping[str, StateEntry] | None] = {}
        for parameter, state in zip(group["params"], states[index], strict=True):
            key = (parameter.dtype, parameter.device, parameter.ndim)
            if key not in trials:
                trials[key] = _trial(optimizer, group, saved, parameter)
            for problem in _problems(parameter, state, trials[key]):
                raise CheckpointError(
                    f"{problem} in the state of {kind} for a parameter of shape "
                    f"{tuple(parameter.shape)}: the state belongs to another network or optimizer"
                )


def _trial(
    optimizer: Optimizer, group: Mapping[str, Any], saved: Entries, parameter: Tensor
) -> Mapping[str, StateEntry] | None:
    """Return the state after two steps with the saved options; None if it cannot be found out."""
    kind = type(optimizer)
    found = state_after_steps(kind, {**group, **_as_before(group, saved)}, parameter)
    if found is None and state_after_steps(kind, group, parameter) is not None:
        raise CheckpointError(
            f"{kind.__name__} refuses the saved options "
            f"{ {k: v for k, v in saved.items() if k != 'params'}!r:.300}"
        )
    return found


def _as_before(group: Mapping[str, Any], saved: Entries) -> dict[str, Any]:
    """Return saved options with tuples where the optimizer has them; JSON has only lists.

    Those that choose an implementation are the optimizer's own: the saved ones may be for a GPU.
    """
    return {
        name: tuple(value) if isinstance(group.get(name), tuple) else value
        for name, value in saved.items()
        if name not in IMPLEMENTATION | {"params"}
    }


def _option_fits(name: str, now: object, saved: object) -> bool:
    """Whether a saved option has a type and range that it may have; unknown types always fit."""
    number = _number(saved)
    if name == "lr":
        return number is not None and 0 <= number < math.inf
    if isinstance(now, bool):
        return saved is None or isinstance(saved, bool)
    if now is None:
        return saved is None or isinstance(saved, bool) or number is not None
    if isinstance(now, int | float | Tensor):
        return number is not None
    if isinstance(now, tuple | list):
        return (
            isinstance(saved, tuple | list)
            and len(saved) == len(now)
            and all(_option_fits("", one, other) for one, other in zip(now, saved, strict=True))
        )
    return not isinstance(now, str) or isinstance(saved, str)


def _number(value: object) -> float | None:
    """Return one number that is given as such or as a tensor; None if it is anything else, or NaN.

    So is a whole number that PyTorch cannot compute with.
    """
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    return None if math.isnan(value) else float(value)


def _problems(
    parameter: Tensor, state: Entries | None, trial: Mapping[str, StateEntry] | None
) -> Iterator[str]:
    """Yield what is wrong with the saved state of a parameter."""
    if state is None or trial is None:
        return
    if not isinstance(state, Mapping):
        yield f"{state!r:.60} stands"
        return
    for name, wanted in trial.items():
        if name not in state:
            yield f"{name!r} is missing"
            continue
        value = state[name]
        if wanted.dims is not None:
            shape = tuple(1 if dim is None else parameter.shape[dim] for dim in wanted.dims)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                yield f"{name!r} is {_shown(value)}, not a tensor of shape {shape}"
            elif value.is_floating_point() != wanted.is_floating_point:
                yield f"{name!r} is of {value.dtype}"
        elif wanted.is_number:
            number = _number(value)
            if number is None or isinstance(value, Tensor) != wanted.is_tensor:
                yield f"{name!r} is {_shown(value)}, not a number as this optimizer keeps it"
            elif name == "step" and not 0 <= number < math.inf:
                yield f"{name!r} is {_shown(value)}, not a number of steps"


def _shown(value: object) -> str:
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)!r:.60}"
    return f"{value!r:.60}"
