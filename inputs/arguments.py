"""What public functions check of their arguments before they begin, in words that name the argument."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Integral, Real
from typing import Any, Final, ParamSpec, TypeVar

__all__ = [
    "FLAG",
    "PATH",
    "expect_attributes",
    "expect_type",
    "kind",
    "mapping_to",
    "number",
    "one_of",
    "takes",
    "whole",
    "whole_numbers",
]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
#: Refuses a value of an argument of this name, or says nothing.
Check = Callable[[str, Any], None]


def expect_type(what: str, given: object, *types: type, hint: str = "") -> None:
    """Refuse an argument of another type.

    Args:
        what: The argument's name.
        given: What was given.
        types: What it may be.
        hint: How to get one.

    Raises:
        TypeError: It is none of these.

    Example:
        >>> expect_type("k", "ten", int)
        Traceback (most recent call last):
        ...
        TypeError: k is a str; expected int
    """
    if not isinstance(given, types) or (isinstance(given, bool) and bool not in types):
        wanted = " or ".join(kind.__name__ for kind in types)
        raise TypeError(f"{what} is a {type(given).__name__}; expected {wanted}{': ' + hint if hint else ''}")


def expect_attributes(what: str, given: Any, names: tuple[str, ...], wanted: str) -> None:
    """Refuse an argument without the attributes that make it what is wanted, where its class would be slow to import.

    Raises:
        TypeError: One is missing.
    """
    if any(not hasattr(given, name) for name in names):
        raise TypeError(f"{what} is a {type(given).__name__}; expected {wanted}")


def takes(**checks: Check) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Let a function refuse arguments of a wrong kind before it begins; None is let through where it is the default.

    Args:
        **checks: Argument -> what it must be.

    Example:
        >>> @takes(k=whole(1))
        ... def best(scores, k=3):
        ...     return sorted(scores)[-k:]
        >>> best([1, 2], k="two")
        Traceback (most recent call last):
        ...
        TypeError: k is 'two'; expected a whole number
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        signature = inspect.signature(function)
        optional = {name for name in checks if name in signature.parameters and signature.parameters[name].default is None}

        @wraps(function)
        def checked(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            given = signature.bind_partial(*args, **kwargs).arguments
            for name, check in checks.items():
                if name in given and not (given[name] is None and name in optional):
                    check(name, given[name])
            return function(*args, **kwargs)

        return checked

    return decorate


def whole(least: int | None = None) -> Check:
    """Want a whole number, from `least` on if that is given."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} is {value!r}; expected a whole number")
        if least is not None and value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")

    return check


def number(*, above: float = -math.inf, below: float = math.inf) -> Check:
    """Want a finite number between two others."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} is {value!r}; expected a number")
        if not above < float(value) < below:
            between = "a finite number" if math.isinf(above) and math.isinf(below) else f"between {above:g} and {below:g}"
            raise ValueError(f"{name} is {value}; expected {between}")

    return check


def one_of(*choices: str) -> Check:
    """Want one of some words."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")

    return check


def kind(*types: type, hint: str = "") -> Check:
    """Want a value of one of some types."""
    return lambda name, value: expect_type(name, value, *types, hint=hint)


def mapping_to(wanted: str, *attributes: str) -> Check:
    """Want a mapping whose values have the attributes of what is wanted."""

    def check(name: str, value: Any) -> None:
        expect_type(name, value, Mapping)
        for key, part in value.items():
            expect_attributes(f"{name}[{key!r}]", part, attributes, wanted)

    return check


def whole_numbers(least: int) -> Check:
    """Want a list of whole numbers from `least` on."""

    def check(name: str, value: Any) -> None:
        expect_type(name, value, list, tuple)
        for part in value:
            whole(least)(f"a part of {name}", part)

    return check


def _path(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a path")


#: Wants true or false.
FLAG: Final = kind(bool)
#: Wants a path, or its text.
PATH: Final[Check] = _path
