"""What public functions check of their arguments before they begin, in words that name the argument."""

from __future__ import annotations

from typing import Any

__all__ = ["expect_attributes", "expect_type"]


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
