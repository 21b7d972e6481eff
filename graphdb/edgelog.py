"""The clustered edges of a relation as a log of Parquet files, one a day, beside the store's file.

::

    <store>.edges/relation=<name>/date=<day>/<uuid>.parquet       src, dst by idx, ordered by (dst, time, src)
    <store>.edges/relation=<name>~out/date=<day>/<uuid>.parquet   the copy by src, where there is one

The store's `_part` table lists the files that count: a file is written under a temporary name, synced and renamed before the
transaction that lists it commits. Files never change; what replaces one has another name, and the old one stays for as long as
a view may read it. What a killed writer leaves behind is on no list, and goes when the store is opened or compacted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from multifacet.graphdb.layout import (
    delta_table,
    edge_columns,
    edge_order,
    edge_table,
    key_columns,
    out_order,
    out_table,
    payload_columns,
)
from multifacet.graphdb.schema import Relation
from multifacet.graphdb.sql import changed, quote, quote_text, run

logger = logging.getLogger(__name__)

PART_TABLE = (
    "CREATE TABLE _part (relation VARCHAR NOT NULL, is_out BOOLEAN NOT NULL, date DATE NOT NULL, file VARCHAR NOT NULL, "
    "properties VARCHAR[] NOT NULL, edges BIGINT NOT NULL)"
)
_DAY_US = 86_400_000_000
_MAX_NAME_BYTES = 150


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """A day (UTC) of a log.

    Attributes:
        date: As DuckDB writes it.
        start_us: Microseconds from the epoch to its start.
    """

    date: str
    start_us: int

    @property
    def condition(self) -> str:
        """SQL that holds for the edges of the day."""
        return f"time BETWEEN make_timestamp({self.start_us}) AND make_timestamp({self.start_us + _DAY_US - 1})"


class EdgeLog:
    """The Parquet files of one relation, each a day of it.

    A batch's edges of days that have no file yet become files at once; those of other days wait in the delta.

    Args:
        connection: Within a transaction where it writes. Its database looks for files in `folder`.
        relation: The relation, which has a time.
        folder: The folder of the store's files.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, relation: Relation, folder: Path) -> None:
        self._connection = connection
        self._relation = relation
        self._folder = folder
        self.table = edge_table(relation.name)
        self.order = f"time::DATE, {edge_order(relation)}"

    def create(self, columns: str) -> None:  # noqa: ARG002 - the delta, which exists, has them
        """Creates the views over no file."""
        self.publish()

    def takes_first_batch(self) -> bool:
        """Batches are cut into days first."""
        return False

    def absorb(self, batch: str) -> int:
        """Writes the days that are new, and deletes them from the batch; returns the number of their edges."""
        known = f"SELECT date FROM _part WHERE relation = {self._name} UNION SELECT time::DATE FROM {self._delta}"
        days = self._days(f"SELECT time::DATE AS date FROM {batch} ANTI JOIN ({known}) AS known ON known.date = time::DATE")
        written = sum(
            self._write(day, f"SELECT {edge_columns(self._relation)} FROM {batch} WHERE {day.condition}") for day in days
        )
        if days:
            dates = ", ".join(f"DATE {quote_text(day.date)}" for day in days)
            run(self._connection, f"DELETE FROM {batch} WHERE time::DATE IN ({dates})")
        return written

    def publish(self) -> None:
        """Lets the store's views read the files that are listed now."""
        views = {self.table: False} | ({out_table(self._relation.name): True} if self._relation.out_clustered else {})
        for view, is_out in views.items():
            run(self._connection, f"CREATE OR REPLACE VIEW {view} AS FROM {self._rows(is_out=is_out)}")

    def rows(self, first: str | None = None, last: str | None = None) -> str:
        """A FROM clause of the days from that of one time to that of another: day by day, each in order."""
        bounds = "".join(
            f" AND date {operator} TIMESTAMP {quote_text(bound)}::DATE"
            for operator, bound in ((">=", first), ("<=", last))
            if bound is not None
        )
        return self._rows(bounds)

    def update(self, batch: str, values: Mapping[str, str]) -> None:
        """Writes anew the days in which a batch has keys that are there already."""
        key = ", ".join(key_columns(self._relation))
        first, last = run(self._connection, f"SELECT min(time)::VARCHAR, max(time)::VARCHAR FROM {batch}")[0]
        same = " AND ".join(f"kept.{name} = given.{name}" for name in key_columns(self._relation))
        columns = [
            *(f"kept.{name}" for name in key_columns(self._relation)),
            *(f"CASE WHEN given.src IS NULL THEN kept.{name} ELSE {values[name]} END AS {name}" for name in values),
        ]
        for day in self._days(f"SELECT time::DATE AS date FROM {self.rows(first, last)} SEMI JOIN {batch} USING ({key})"):
            kept = f"FROM {self._day_rows(day)} AS kept LEFT JOIN {batch} AS given ON {same}"
            self._rewrite(day, f"SELECT {', '.join(columns)} {kept}")

    def delete(self, where: str) -> int:
        """Drops the days whose edges a condition holds for, and writes anew those where it holds for some."""
        hits = f"SELECT time::DATE AS date, count(*) AS edges FROM {self.rows()} WHERE {where} GROUP BY ALL"
        deleted = 0
        for day, edges in self._days_with_edges(hits):
            deleted += edges
            self._rewrite(day, f"SELECT {edge_columns(self._relation)} FROM {self._day_rows(day)} WHERE NOT ({where})")
        if deleted:
            self.publish()
        return deleted

    def compact(self) -> int:
        """Merges the delta into the files of its days; returns the number of edges that were in it."""
        columns = edge_columns(self._relation)
        for day in self._days(f"SELECT time::DATE AS date FROM {self._delta}"):
            late = f"SELECT {columns} FROM {self._delta} WHERE {day.condition}"
            self._rewrite(day, f"SELECT {columns} FROM {self._day_rows(day)} UNION ALL {late}")
        merged = changed(self._connection, f"DELETE FROM {self._delta}")
        if merged:
            self.publish()
        return merged

    def add_column(self, name: str, kind: str) -> None:  # noqa: ARG002 - the relation declares it
        """Reads the files, which lack the column, as if it held nulls."""
        self.publish()

    @property
    def _delta(self) -> str:
        return delta_table(self._relation.name)

    @property
    def _name(self) -> str:
        return quote_text(self._relation.name)

    def _days(self, dates: str) -> list[Day]:
        return [day for day, _ in self._days_with_edges(f"SELECT DISTINCT date, 0 AS edges FROM ({dates})")]

    def _days_with_edges(self, query: str) -> list[tuple[Day, int]]:
        found = run(self._connection, f"SELECT date::VARCHAR, epoch_us(date), edges FROM ({query}) ORDER BY date")
        return [(Day(date=date, start_us=start_us), edges) for date, start_us, edges in found]

    def _rewrite(self, day: Day, rows: str) -> None:
        """Puts rows, in no order, in the place of a day's edges."""
        run(self._connection, f"CREATE OR REPLACE TEMP TABLE _day AS {rows} ORDER BY {edge_order(self._relation)}")
        run(self._connection, f"DELETE FROM _part WHERE relation = {self._name} AND date = DATE {quote_text(day.date)}")
        self._write(day, "FROM _day")
        run(self._connection, "DROP TABLE _day")

    def _write(self, day: Day, rows: str) -> int:
        """Writes a day's edges, which are in order, and lists their files; returns their number."""
        edges = self._write_part(day, rows, is_out=False)
        if edges and self._relation.out_clustered:
            self._write_part(day, f"FROM ({rows}) ORDER BY {out_order(self._relation)}", is_out=True)
        return edges

    def _write_part(self, day: Day, rows: str, *, is_out: bool) -> int:
        folder = Path(_folder_name(self._relation.name, is_out=is_out), f"date={urllib.parse.quote(day.date)}")
        path = self._folder / folder / f"{uuid.uuid4().hex}.parquet"
        unfinished = path.with_suffix(".unfinished")
        _make_folder(path.parent)
        edges = changed(self._connection, f"COPY ({rows}) TO {quote_text(str(unfinished))} (FORMAT parquet)")
        if not edges:
            unfinished.unlink()
            return 0
        _sync(unfinished)
        unfinished.rename(path)
        _sync(path.parent)
        run(
            self._connection,
            f"INSERT INTO _part VALUES ({self._name}, {is_out}, DATE {quote_text(day.date)}, ?, ?, {edges})",
            [str(folder / path.name), list(self._relation.properties)],
        )
        return edges

    def _day_rows(self, day: Day) -> str:
        return self._rows(f" AND date = DATE {quote_text(day.date)}")

    def _rows(self, bounds: str = "", *, is_out: bool = False) -> str:
        parts = run(
            self._connection,
            f"SELECT file, properties FROM _part WHERE relation = {self._name} AND is_out = {is_out}{bounds} ORDER BY date",
        )
        if not parts:
            return f"(SELECT {edge_columns(self._relation)} FROM {self._delta} WHERE false)"
        # Files from before a property was added lack its column: neighbours that have the same columns are read together.
        runs = [
            self._read([file for file, _ in group], properties)
            for properties, group in itertools.groupby(parts, key=lambda part: part[1])
        ]
        return f"({' UNION ALL '.join(runs)})"

    def _read(self, files: Sequence[str], properties: Sequence[str]) -> str:
        lacking = {quote(name): kind for name, kind in self._relation.properties.items() if name not in properties}
        columns = [
            f"NULL::{lacking[name]} AS {name}" if name in lacking else name
            for name in [*key_columns(self._relation), *payload_columns(self._relation)]
        ]
        names = ", ".join(map(quote_text, files))
        return f"SELECT {', '.join(columns)} FROM read_parquet([{names}], hive_partitioning = false)"


def sweep(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Removes the files that are on no list; returns their number. Nothing may read or write the log meanwhile."""
    listed = {file for (file,) in run(connection, "SELECT file FROM _part")}
    stray = [path for path in folder.glob("relation=*/date=*/*") if str(path.relative_to(folder)) not in listed]
    for path in stray:
        path.unlink()
    if stray:
        logger.info("removed %d files below %s that replaced or unfinished parts had left", len(stray), folder)
    return len(stray)


def log_bytes(folder: Path) -> int:
    """Bytes of a log's files."""
    return sum(path.stat().st_size for path in folder.glob("relation=*/date=*/*.parquet"))


def _folder_name(relation: str, *, is_out: bool) -> str:
    name = urllib.parse.quote(relation, safe="")
    if len(name) > _MAX_NAME_BYTES:
        name = f"{name[:_MAX_NAME_BYTES]}~{hashlib.sha256(relation.encode()).hexdigest()[:16]}"
    return f"relation={name}{'~out' if is_out else ''}"


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
