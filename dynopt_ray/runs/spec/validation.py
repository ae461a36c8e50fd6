"""From plain data to a spec: every mistake at once, each with its path, value and remedy."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dynopt_ray.errors import SpecError, did_you_mean

Path = Sequence[str | int]

# pydantic's error types, in the words of whoever writes YAML.
_EXPECTED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


class Strict(BaseModel):
    """Base of every part of a spec: immutable, no unknown keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_Spec = TypeVar("_Spec", bound=Strict)


def validated(model: type[_Spec], data: Mapping[str, Any], *, source: str) -> _Spec:
    """The spec that plain data describe.

    Args:
        model: what they should be.
        data: as read from YAML.
        source: where they come from, for messages.

    Raises:
        SpecError: one message that lists every wrong key, type and value.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise spec_error([_message(model, detail) for detail in error.errors()], source) from None


def spec_error(messages: Sequence[str], source: str) -> SpecError:
    """One error for one or several mistakes."""
    if len(messages) == 1:
        return SpecError(f"{source}: {messages[0]}")
    lines = "".join(f"\n  {message}" for message in messages)
    return SpecError(f"{source} has {len(messages)} errors:{lines}")


def dotted(path: Path) -> str:
    """A place in a spec as `--set` takes it: search.space.lr.0."""
    return ".".join(str(part) for part in path)


def short(value: Any) -> str:
    """A value in a message: its repr, cut when it is long."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)


def _message(model: type[BaseModel], detail: ErrorDetails) -> str:
    path, kind = detail["loc"], detail["type"]
    where = dotted(path)
    if kind == "extra_forbidden":
        known = list(_model_at(model, path[:-1]).model_fields)
        return (
            f"{where}: unknown key (its value is {short(detail['input'])})."
            f"{did_you_mean(str(path[-1]), known)} Known: {', '.join(known)}."
        )
    if kind == "missing":
        return f"{where}: missing; {_needs(_model_at(model, path[:-1]), str(path[-1]))}"
    text = _EXPECTED.get(kind) or _plain(detail["msg"])
    if kind in ("value_error", "assertion_error"):
        return f"{where}: {text}" if where else text
    return f"{where}: {text}, not {short(detail['input'])}"


def _plain(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text.replace("Input should be", "must be")


def _needs(model: type[BaseModel], name: str) -> str:
    description = model.model_fields[name].description
    return f"it is {description}" if description else "give a value"


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel]:
    """The part of a spec that a path leads to."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = next(_models(field.annotation, *field.metadata), None) if field else None
        if inner is None:
            break
        model = inner
    return model


def _models(*annotations: Any) -> Iterator[type[BaseModel]]:
    """The models within annotations, those of `Fills` included."""
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        elif isinstance(model := getattr(annotation, "model", None), type):
            yield model
        yield from _models(*get_args(annotation))
