"""Parts of a source: rows that have the same columns, of the same types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from multifacet.graphdb.sql import GraphError, quote


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows that can be read by one FROM clause.

    Attributes:
        sql: The FROM clause.
        types: Column -> DuckDB type.
        file: SQL of the file that a row stands in, or of null.
        number: SQL of a row's number, from 0, in its file; None where it is counted as the rows are copied.
        order: SQL of what the rows' order in the source is, beside the order in which they are read.
        expressions: Column -> SQL, for columns that are not called by their name.
        files: The files that are read.
        is_repeatable: Whether the rows can be read where they are, again and again.
        first_line: The line of a text file that its first row stands in; 0 for what has no lines.
        quote: What values of a text file may be quoted by, empty for nothing; None where a row has no line of its own.
        hint: What may mend a missing column.
    """

    sql: str
    types: Mapping[str, str]
    file: str = "NULL::VARCHAR"
    number: str | None
    order: tuple[str, ...]
    expressions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Sequence[str] = ()
    is_repeatable: bool = False
    first_line: int = 0
    quote: str | None = None
    hint: str = ""

    def column(self, wanted: str) -> str | None:
        """The column that is meant by a name: by DuckDB's rule case does not count, unless it tells two columns apart.

        Raises:
            GraphError: Two columns could be meant.
        """
        if wanted in self.types:
            return wanted
        found = [name for name in self.types if name.lower() == wanted.lower()]
        if len(found) > 1:
            msg = f"column {wanted!r} could be {' or '.join(map(repr, found))}; name it as it is written"
            raise GraphError(msg)
        return found[0] if found else None

    def given(self, column: str) -> str:
        """SQL of a column's value."""
        return self.expressions.get(column, quote(column))
