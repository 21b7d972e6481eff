"""Rows of another database, read as Arrow by its ADBC driver."""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
from typing_extensions import override

from multifacet.graphdb.lake.table import LakeTable, Piece, told
from multifacet.graphdb.sql import GraphError
from multifacet.inputs import import_extra

__all__ = ["DatabaseQuery"]

_DRIVERS: Final = {
    "sqlite": "adbc_driver_sqlite.dbapi",
    "postgresql": "adbc_driver_postgresql.dbapi",
    "postgres": "adbc_driver_postgresql.dbapi",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatabaseQuery(LakeTable):
    """The rows of a query, which the database runs.

    They have no place of their own: where a relation counts every row, name the batch.

    Attributes:
        uri: The database: sqlite:///relative.db or sqlite:////absolute.db, or postgresql://user@host/name.
        query: One SELECT, in the database's SQL.
    """

    uri: str
    query: str

    @property
    @override
    def address(self) -> str:
        # Without a password, which reports are no place for.
        parts = urllib.parse.urlsplit(self.uri)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    @override
    def pieces(self, wanted: Sequence[str] | None) -> list[Piece]:
        del wanted  # the query says which
        scheme = self.uri.partition("://")[0]
        if scheme not in _DRIVERS:
            msg = f"{self.address}: expected the address of one of {', '.join(_DRIVERS)}"
            raise GraphError(msg)
        driver = import_extra(_DRIVERS[scheme], "lake")
        target = self.uri
        if scheme == "sqlite":
            path = urllib.parse.unquote(self.uri.removeprefix("sqlite://")).removeprefix("/")
            if not Path(path).is_file():
                msg = f"cannot read {self.address}: there is no such file"
                raise GraphError(msg)
            target = f"file:{urllib.parse.quote(path)}?mode=ro"
        with told(self.address), contextlib.ExitStack() as stack:
            connection = stack.enter_context(driver.connect(target))
            cursor = stack.enter_context(connection.cursor())
            cursor.execute(self.query)
            reader = cursor.fetch_record_batch()
            opened = stack.pop_all()  # asked once: what answers is read, and closed then
        return [Piece(name=None, schema=reader.schema, batches=lambda: self._read(reader, opened))]

    def _read(self, reader: pa.RecordBatchReader, opened: contextlib.ExitStack) -> Iterator[pa.RecordBatch]:
        with told(self.address), opened:
            yield from reader
