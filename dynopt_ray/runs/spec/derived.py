"""Derive parts of specs from the dataclasses and functions that take their values.

Defaults and bounds are thus written only once.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from functools import cached_property
from typing import Any, get_origin, get_type_hints

from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from dynopt_ray.errors import DynoptError
from dynopt_ray.runs.spec.validation import Strict


def default_of(function: Callable[..., Any], parameter: str) -> Any:
    """Return a field whose default is that of a function's parameter."""
    return Field(default=inspect.signature(function).parameters[parameter].default)


class Fills:
    """Annotates a field that is written as a mapping and becomes a dataclass.

    The keys of the mapping are the fields of the dataclass, with their types and defaults. The
    dataclass checks the values when it is made, and its error becomes the error of the field.

    Args:
        kind: the dataclass.
        omit: fields of the dataclass that a spec cannot set.

    Example:
        >>> from typing import Annotated
        >>> from dynopt_ray.online import Guard
        >>> class Learner(Strict):
        ...     guard: Annotated[Guard, Fills(Guard)] = Guard()
        >>> Learner.model_validate({"guard": {"window": 8}}).guard.window
        8
    """

    def __init__(self, kind: type[Any], *, omit: Collection[str] = ()) -> None:
        self.kind = kind
        self.omit = frozenset(omit)

    @cached_property
    def model(self) -> type[Strict]:
        """The keys of the mapping, as a pydantic model."""
        hints = get_type_hints(self.kind)
        keys = {
            field.name: (hints[field.name], _field(field, hints[field.name]))
            for field in fields(self.kind)
            if field.init and field.name not in self.omit
        }
        made: type[Strict] = create_model(self.kind.__name__, __base__=Strict, **keys)  # type: ignore[call-overload]
        return made

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate a mapping with `model`, then make the dataclass from it."""
        del source
        return core_schema.no_info_wrap_validator_function(
            self._made,
            handler.generate_schema(self.model),
            serialization=core_schema.plain_serializer_function_ser_schema(self._plain),
        )

    def _made(self, value: Any, validate: Callable[[Any], Strict]) -> Any:
        if isinstance(value, self.kind):
            return value
        checked = validate(value)
        try:
            return self.kind(**{name: getattr(checked, name) for name in self.model.model_fields})
        except (DynoptError, TypeError) as error:
            raise ValueError(str(error)) from None  # pydantic collects ValueErrors only

    def _plain(self, value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in self.model.model_fields}


def _field(field: Any, hint: Any) -> Any:
    strict = False if get_origin(hint) is tuple else None  # YAML has lists but no tuples
    if field.default is not MISSING:
        return Field(default=field.default, strict=strict)
    if field.default_factory is not MISSING:
        return Field(default_factory=field.default_factory, strict=strict)
    return Field(strict=strict)
