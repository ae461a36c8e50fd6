"""Check plain data against a spec, and report every mistake at once.

pydantic validates the data and collects all errors instead of stopping at the first one. Models are
strict: an unknown key is an error, because a misspelt key would otherwise leave its default in
force, and no value is converted to another type. This module turns each of pydantic's errors into
one line in the words of someone who writes YAML: the dotted path as `--set` takes it, what the
value must be, and what it is.

For an unknown or missing key pydantic gives the path, but not the alternatives. The path is
therefore followed through the annotations of the models, including `Fills`, to the part of the spec
that should hold the key. The keys of this part give the closest match and the list of known keys,
and its descriptions say what to give for a missing key.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dynopt_ray import plugins
from dynopt_ray.errors import DynoptError, SpecError, did_you_mean, short, shortened

Path = Sequence[str | int]

_MOST_MESSAGES = 20
_LONGEST_KEY = 60

# pydantic's error types -> the words of someone who writes YAML.
_EXPECTED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


class Strict(BaseModel):
    """Base of every part of a spec: immutable, without unknown keys or conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_Spec = TypeVar("_Spec", bound=Strict)


_may_run_code = ContextVar("_may_run_code", default=False)


def validated(
    model: type[_Spec], data: Mapping[str, Any], *, source: str, run_code: bool = False
) -> _Spec:
    """Return the spec that plain data describe.

    Args:
        model: the class of the spec.
        data: the data as read from YAML.
        source: where the data come from, for messages.
        run_code: whether to check values that name code as `module:attribute`, too, by running
            that code. Reading a spec must not run what it names; preparing its run does.

    Raises:
        SpecError: there are mistakes; one message lists every wrong key, type and value.
    """
    token = _may_run_code.set(run_code)
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        details = error.errors(include_url=False)
        messages = [_message(model, detail) for detail in details[:_MOST_MESSAGES]]
        raise spec_error(messages, source, more=len(details) - len(messages)) from None
    finally:
        _may_run_code.reset(token)


def checked_by(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Return a validator that calls `check` and returns the value unchanged.

    A DynoptError or TypeError that `check` raises becomes the error of the field. A value that
    names code is not checked unless `validated` may run code.
    """

    def validate(value: Any) -> Any:
        if plugins.names_code(value) and not _may_run_code.get():
            return value
        try:
            check(value)
        except (DynoptError, TypeError, OverflowError) as error:
            raise ValueError(str(error)) from None  # pydantic collects ValueErrors only
        return value

    return validate


def spec_error(messages: Sequence[str], source: str, *, more: int = 0) -> SpecError:
    """Return one error for one or more mistakes, and for `more` that have no message."""
    if len(messages) == 1 and not more:
        return SpecError(f"{source}: {messages[0]}")
    lines = "".join(f"\n  {shortened(message, 600)}" for message in messages)
    rest = f"\n  … and {more:,} more" if more else ""
    return SpecError(f"{source} has {len(messages) + more:,} errors:{lines}{rest}")


def dotted(path: Path) -> str:
    """Return a path in a spec as `--set` takes it, e.g. search.space.lr.0."""
    return ".".join(shortened(str(part), _LONGEST_KEY) for part in path)


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
    """Return the part of a spec that a path leads to, followed as far as possible."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = next(_models(field.annotation, *field.metadata), None) if field else None
        if inner is None:
            break
        model = inner
    return model


def _models(*annotations: Any) -> Iterator[type[BaseModel]]:
    """Yield the models within annotations, including those of `Fills`."""
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        elif isinstance(model := getattr(annotation, "model", None), type):
            yield model
        yield from _models(*get_args(annotation))
