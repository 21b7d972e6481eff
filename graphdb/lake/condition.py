"""Conditions by which pieces of a table are passed over without being read."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc

from multifacet.graphdb.lake.table import choose_columns
from multifacet.graphdb.sql import GraphError

__all__ = ["Condition", "Operator", "as_conditions", "as_expression", "bind"]

Operator = Literal["=", "<", "<=", ">", ">="]
_PATTERN: Final = re.compile(r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator><=|>=|=|<|>)\s*(?P<value>[^<>=].*?)\s*", re.DOTALL)
_FUNCTIONS: Final = {"=": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


class Condition(NamedTuple):
    """What a column's value must be; a null never is.

    Example:
        >>> Condition.parse("day >= '2026-11-01'")
        Condition(column='day', operator='>=', value='2026-11-01')
    """

    column: str
    operator: Operator
    value: Any

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads a condition as it is written on a command line; quotes around the value may be left out.

        Raises:
            GraphError: It is none.
        """
        found = _PATTERN.fullmatch(text)
        if found is None:
            msg = f"{text!r} is no condition; write a column, one of {' '.join(get_args(Operator))}, and a value"
            raise GraphError(msg)
        value = found["value"]
        if len(value) > 1 and value[0] == value[-1] == "'":
            value = value[1:-1].replace("''", "'")
        operator: Operator = found["operator"]  # type: ignore[assignment]  # the pattern has these alone
        return cls(found["column"], operator, value)


def as_conditions(given: Iterable[Any] | str | None) -> tuple[Condition, ...]:
    """Gives conditions as a user may write them: texts, or (column, operator, value).

    Raises:
        GraphError: One is neither.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        given = (given,)
    conditions = []
    for item in given:
        if isinstance(item, str):
            conditions.append(Condition.parse(item))
            continue
        is_triple = isinstance(item, Sequence) and len(item) == 3 and isinstance(item[0], str)
        if not is_triple or item[1] not in get_args(Operator):
            msg = f"{item!r} is no condition; give (column, operator, value), the operator one of {get_args(Operator)}"
            raise GraphError(msg)
        conditions.append(Condition(*item))
    return tuple(conditions)


def bind(conditions: Sequence[Condition], schema: pa.Schema, *, where: str) -> dict[Condition, pa.Scalar]:
    """Gives each condition, its column named as the table names it, and its value as one of that column's type.

    Args:
        conditions: The conditions.
        schema: The table's columns.
        where: The table, for messages.

    Raises:
        GraphError: There is no such column, or the value is not exactly one of its type.
    """
    bound = {}
    for condition in conditions:
        names = choose_columns(schema, [condition.column])
        if len(names) != 1 or names[0].lower() != condition.column.lower():
            msg = f"{where}: a condition is on column {condition.column!r}, and there are {list(schema.names)}"
            raise GraphError(msg)
        kind = schema.field(names[0]).type
        try:
            value = _cast(condition.value, kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            msg = f"{where}: column {names[0]!r} is {kind}, and the condition's value {condition.value!r} is none"
            raise GraphError(msg) from error
        bound[condition._replace(column=names[0])] = value
    return bound


def as_expression(bound: Mapping[Condition, pa.Scalar]) -> pc.Expression | None:
    """Gives bound conditions, all of which must hold, as one of pyarrow's expressions; None for none."""
    expression = None
    for condition, value in bound.items():
        one = _FUNCTIONS[condition.operator](pc.field(condition.column), value)
        expression = one if expression is None else expression & one
    return expression


def _cast(value: Any, kind: pa.DataType) -> pa.Scalar:
    if value is None:
        raise ValueError("a null is never equal to anything")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(value, str) and pa.types.is_timestamp(kind):
        # A time without a zone is UTC, as everywhere at the door.
        given = dt.datetime.fromisoformat(value)
        aware = given.astimezone(dt.UTC) if given.tzinfo else given.replace(tzinfo=dt.UTC)
        value = aware if kind.tz else aware.replace(tzinfo=None)
    if isinstance(value, dt.datetime) and pa.types.is_timestamp(kind) and (value.tzinfo is None) == (kind.tz is not None):
        value = value.replace(tzinfo=dt.UTC) if kind.tz else value.astimezone(dt.UTC).replace(tzinfo=None)
    if pa.types.is_temporal(kind) and not isinstance(value, str | dt.date | dt.time | dt.timedelta | pa.Scalar):
        raise TypeError("a number has no unit of time")
    if isinstance(value, str):
        return pa.scalar(value).cast(kind)
    scalar = pa.scalar(value)
    return scalar if scalar.type == kind else scalar.cast(kind)
