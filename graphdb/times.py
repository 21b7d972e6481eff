"""Times as the store has them: UTC, in microseconds, of the years 1 to 9999."""

from __future__ import annotations

import datetime as dt
import numbers
from typing import Final

import numpy as np

from multifacet.graphdb.sql import GraphError

#: A point in time: without a zone it is UTC; a date is its midnight; text is ISO 8601, with or without an offset.
Time = dt.datetime | dt.date | str | np.datetime64

#: Microseconds since 1970 of what Python, and so every answer, can hold.
FIRST_US: Final = -62_135_596_800_000_000
LAST_US: Final = 253_402_300_799_999_999

_EPOCH = dt.datetime(1970, 1, 1)


def utc(time: Time | None, name: str = "the time") -> dt.datetime | None:
    """Gives a time as UTC without a zone, as DuckDB's TIMESTAMP has it.

    Args:
        time: The time, or None.
        name: What an error calls it.

    Raises:
        GraphError: It is not a time.

    Example:
        >>> utc("2026-07-01T14:00:00+02:00")
        datetime.datetime(2026, 7, 1, 12, 0)
    """
    if time is None:
        return None
    if isinstance(time, np.datetime64):
        time = _from_numpy(time, name)
    if isinstance(time, str):
        time = _from_text(time, name)
    if isinstance(time, dt.datetime):
        if time != time:  # noqa: PLR0124 - pandas' NaT is a datetime, and the only one that differs from itself
            raise _refused(time, name)
        plain = time if time.tzinfo is None else time.astimezone(dt.UTC)
        # A plain datetime, whatever subclass was given.
        return dt.datetime(plain.year, plain.month, plain.day, plain.hour, plain.minute, plain.second, plain.microsecond)
    if isinstance(time, dt.date):
        return dt.datetime(time.year, time.month, time.day)
    raise _refused(time, name)


def microseconds(time: dt.datetime) -> int:
    """Gives the microseconds from 1970 to a UTC time without a zone.

    Example:
        >>> microseconds(dt.datetime(1970, 1, 2))
        86400000000
    """
    return (time - _EPOCH) // dt.timedelta(microseconds=1)


def _from_text(text: str, name: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _refused(text, name) from error


def _from_numpy(time: np.datetime64, name: str) -> dt.datetime:
    value = time.astype("datetime64[us]").astype(np.int64)
    if np.isnat(time) or not FIRST_US <= value <= LAST_US:
        raise _refused(time, name)
    return _EPOCH + dt.timedelta(microseconds=int(value))


def _refused(given: object, name: str) -> GraphError:
    hint = "; turn a number of seconds into one by datetime.fromtimestamp(number, datetime.UTC)"
    return GraphError(
        f"{name} is {given!r}, expected a datetime, a date, or text such as '2026-07-01T12:00:00+02:00' (UTC where no "
        f"offset is "
        f"given){hint if isinstance(given, numbers.Number) else ''}"
    )
