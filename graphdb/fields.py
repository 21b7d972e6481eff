"""The typed columns of a batch: what each is made of, and why a row without it is set aside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from multifacet.graphdb import values
from multifacet.graphdb.schema import NodeType
from multifacet.graphdb.values import Given


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One typed column of a batch.

    Attributes:
        name: Its name within the batch.
        column: Its name in the source.
        convert: Gives the SQL of its value from a column of the source.
        wrong: Why a row is set aside whose value cannot be meant.
        missing: Why a row is set aside that has no value; None where it may have none.
        raw: The column of `rejected_rows` that keeps the text given, if any.
    """

    name: str
    column: str
    convert: Callable[[Given], str]
    wrong: str
    missing: str | None = None
    raw: str | None = None


def id_field(name: str, column: str, node: NodeType, *, raw: str) -> Field:
    """Gives the field of an external id."""
    wrong = f"{name} is not an int64" if node.id_type == "int64" else f"{name} is neither text nor a whole number"
    convert = functools.partial(values.identifier, node=node)
    return Field(name=name, column=column, convert=convert, wrong=wrong, missing=f"{name} is null", raw=raw)


def time_field(name: str, column: str, *, is_optional: bool = False) -> Field:
    """Gives the field of a time."""
    missing = None if is_optional else "time is null"
    return Field(name=name, column=column, convert=values.time, wrong="time is not a timestamp", missing=missing, raw="time")


def weight_field(column: str) -> Field:
    """Gives the field of an edge's weight."""
    wrong = "weight is not a finite number"
    return Field(name="weight", column=column, convert=values.weight, wrong=wrong, missing=wrong, raw="weight")


def property_field(name: str, kind: str) -> Field:
    """Gives the field of a property, which may be null."""
    convert = functools.partial(values.property_value, kind=kind)
    return Field(name=name, column=name, convert=convert, wrong=f"{name} is not a {kind}")
