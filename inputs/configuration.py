"""The base of every configuration: frozen, without stray fields, and refused in plain words."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import override

__all__ = ["Configuration", "ConfigurationError"]


class ConfigurationError(ValueError):
    """A field of a configuration that is unknown, missing or of a wrong value; the message names it, and what was given."""


class Configuration(BaseModel):
    """What something is configured by.

    Example:
        >>> class Rates(Configuration):
        ...     lr: float = 0.1
        >>> Rates(lr="fast")
        Traceback (most recent call last):
        ...
        multifacet.inputs.configuration.ConfigurationError: Rates: lr is 'fast': expected a number
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # a checker knows each class's own fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ConfigurationError(_describe(type(self), error)) from None

    @classmethod
    @override
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise ConfigurationError(_describe(cls, error)) from None


_EXPECTED = {
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "finite_number": "expected a finite number",
}


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    """Say each thing that is wrong: the field, what was given, and what was expected."""
    said = []
    for found in error.errors():
        place, kind = ".".join(map(str, found["loc"])), found["type"]
        if kind == "default_factory_not_called":  # it follows from another fault
            continue
        if kind == "value_error":
            text = str(found["ctx"]["error"])
            said.append(f"{place}: {text}" if place else text)
        elif kind == "extra_forbidden":
            close = get_close_matches(str(found["loc"][-1]), model.model_fields, n=1)
            said.append(f"there is no field {place!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        elif kind == "missing":
            said.append(f"the field {place!r} is missing")
        else:
            expected = _EXPECTED.get(kind) or found["msg"].replace("Input should be ", "expected ")
            said.append(f"{place} is {found['input']!r}: {expected}")
    return f"{model.__name__}: {'; '.join(dict.fromkeys(said))}"
