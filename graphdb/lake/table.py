"""What a load needs of a table that lies elsewhere: its pieces, each a stream of rows under a name that does not change."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from multifacet.graphdb.sql import GraphError, first_line

__all__ = ["LakeTable", "Piece", "choose_columns", "told"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows of a table that come and go together, such as those of one of its files.

    Attributes:
        name: By what the store knows them again; None for rows that have no place of their own.
        schema: Their columns.
        batches: Reads them, in the same order each time.
    """

    name: str | None
    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]

    def reader(self) -> pa.RecordBatchReader:
        """Reads the rows as a stream, which opens nothing before it is asked."""

        def read() -> Iterator[pa.RecordBatch]:
            yield from self.batches()

        return pa.RecordBatchReader.from_batches(self.schema, read())


class LakeTable(abc.ABC):
    """A table that a load reads in place."""

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """Where it is, for reports and messages; no secret stands in it."""

    @abc.abstractmethod
    def pieces(self, wanted: Sequence[str] | None) -> list[Piece]:
        """Gives the pieces that may hold rows of its conditions, in the order of their names.

        Args:
            wanted: The columns that are looked for; all by default.

        Returns:
            The pieces. A table without rows gives one that is empty.

        Raises:
            GraphError: The table cannot be read, or a condition does not fit it.
        """


def choose_columns(schema: pa.Schema, wanted: Sequence[str] | None) -> list[str]:
    """Gives the columns that are looked for, by DuckDB's rule: case does not count, unless it tells two columns apart.

    Raises:
        GraphError: A name could mean several columns.
    """
    if wanted is None:
        return list(schema.names)
    found: list[str] = []
    for name in wanted:
        same = [column for column in schema.names if column == name]
        same = same or [column for column in schema.names if column.lower() == name.lower()]
        if len(same) > 1:
            msg = f"column {name!r} could be any of {same}; name it as it is written"
            raise GraphError(msg)
        found += [column for column in same if column not in found]
    # Where none is there, the error names those that are.
    return found or list(schema.names)


@contextlib.contextmanager
def told(address: str) -> Iterator[None]:
    """Tells what another library raises while a table is opened or read, by the table's address."""
    try:
        yield
    except (GraphError, ImportError):
        raise
    except Exception as error:  # these libraries have no error in common
        msg = f"cannot read {address}: {first_line(error) or type(error).__name__}"
        raise GraphError(msg) from error
