"""Checks of a learner's state before any of it is loaded.

A state may come from a file that somebody else wrote, with a checksum that fits. So types, ranges
and shapes are checked first: an error half-way would leave a learner that is neither the old one
nor the new one, and a wrong value would raise an error at a later event.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from dynopt_ray.errors import CheckpointError

_MAX_COUNT = 2**62
_Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
# The product of a rate and a boost must be a float32.
_Rate = Annotated[float, Field(ge=0, le=1e18)]
_Boost = Annotated[float, Field(ge=1e-18, le=1e18)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class _Counters(_Strict):
    events: _Count
    updates: _Count
    draws: _Count
    overflows: _Count
    seed: Annotated[int, Field(ge=-_MAX_COUNT, le=_MAX_COUNT)]
    event_shape: list[_Count] | None


class _Widths(_Strict):
    widths: dict[str, Annotated[int, Field(ge=1, le=_MAX_COUNT)]]
    num_edits: _Count


class _OptimizerState(_Strict):
    state: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


class _RatesState(_Strict):
    own: list[_Rate]
    boost: _Boost
    applied: _Boost
    controller: dict[str, Any] | None


class _Quarantined(_Strict):
    total: _Count
    latest: Annotated[list[tuple[int, str] | list[int | str]], Field(max_length=10_000)]


class _LearnerState(_Strict):
    kinds: dict[str, list[str]]
    counters: _Counters
    model: dict[str, Tensor]
    extra: dict[str, Any] = {}  # files of earlier versions have none
    modes: dict[str, bool]
    structure: _Widths | None
    masks: dict[str, Tensor]
    optimizer: _OptimizerState
    rates: _RatesState
    memory: dict[str, Tensor]
    quarantine: _Quarantined
    detector: dict[str, Any] | None
    reactions: list[dict[str, Any]]


@cache
def state_keys() -> frozenset[str]:
    """Return the names of the parts of a learner's state."""
    return frozenset(_LearnerState.model_fields)


def check_types(state: Mapping[str, Any]) -> None:
    """Check that a state has all parts of a learner's state, each with its type and range.

    Raises:
        CheckpointError: it has not.
    """
    if set(state) | {"extra"} != state_keys():
        raise CheckpointError(
            "this is not the state of a learner: it has the keys "
            f"{sorted(map(str, state))!s:.300}, but a learner's state has {sorted(state_keys())}"
        )
    try:
        _LearnerState.model_validate(dict(state))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the state has been altered: {place:.100} is {first['input']!r:.60}. "
            f"{first['msg']:.200}"
        ) from None
    _check_quarantine(state["quarantine"]["latest"])
    _check_memory(state["memory"], state["counters"]["event_shape"])


def _check_quarantine(latest: list[Any]) -> None:
    for entry in latest:
        if [type(part) for part in entry] != [int, str]:
            raise CheckpointError(
                f"the state has been altered: it holds {entry!r:.60} instead of the number of an "
                "event and the reason why it was not learned"
            )


def _check_memory(memory: Mapping[str, Tensor], event_shape: list[int] | None) -> None:
    """Check that the latest events are as many inputs as targets, of the stream's shape."""
    if not memory:
        return
    if set(memory) != {"x", "y"}:
        raise CheckpointError(f"the state has been altered: its events are {sorted(memory)!s:.200}")
    x, y = memory["x"], memory["y"]
    alike = x.ndim > 0 and y.ndim > 0 and len(x) == len(y)
    if not alike or event_shape is None or list(x.shape[1:]) != list(event_shape):
        raise CheckpointError(
            f"the state has been altered: its latest events have the shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}, but an event of the stream has the shape {event_shape}"
        )
    for name, tensor in memory.items():
        if tensor.is_complex() or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"the state has been altered: {name} of its events is not finite")
