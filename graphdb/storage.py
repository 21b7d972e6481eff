"""Where a store keeps its clustered edges: in its own file, or in a log of Parquet files beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import duckdb

from multifacet.graphdb.edgelog import EdgeLog
from multifacet.graphdb.edgetable import EdgeTable
from multifacet.graphdb.schema import Relation

EdgeStorage = Literal["embedded", "parquet"]


class Base(Protocol):
    """The clustered edges of a relation; those that came since the last compaction are in its delta, a table in either case."""

    table: str
    order: str

    def create(self, columns: str) -> None:
        """Creates it, empty."""

    def takes_first_batch(self) -> bool:
        """Whether an ordered batch can be inserted into `table` as it comes."""

    def absorb(self, batch: str) -> int:
        """Takes what it can of a temporary table of ordered edges, and deletes that there; returns the number of edges."""

    def publish(self) -> None:
        """Makes what was taken visible to readers of the store, once the transaction is committed."""

    def rows(self, first: str | None = None, last: str | None = None) -> str:
        """A FROM clause of at least the edges between two times, both within."""

    def update(self, batch: str, values: Mapping[str, str]) -> None:
        """Sets columns of the edges whose key a batch has."""

    def delete(self, where: str) -> int:
        """Deletes the edges that a condition holds for; returns their number."""

    def compact(self) -> int:
        """Merges the delta; returns the number of edges that were in it."""

    def add_column(self, name: str, kind: str) -> None:
        """Adds a column of nulls."""


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """The storage of one store.

    Attributes:
        log: Folder of the Parquet files; None where the edges are in the store's file.
    """

    log: Path | None = None

    def base(self, connection: duckdb.DuckDBPyConnection, relation: Relation) -> Base:
        """The clustered edges of a relation; those without a time have no date to be filed under, and stay in the file."""
        if self.log is None or not relation.timed:
            return EdgeTable(connection, relation)
        return EdgeLog(connection, relation, self.log)


def log_folder(path: Path) -> Path:
    """The folder of a store's Parquet files."""
    return path.with_name(f"{path.name}.edges")
