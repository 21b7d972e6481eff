"""Which rows of which source a relation has taken, so that a source that comes again adds only what is new in it.

Where rows with the same key are added up or all kept, a row's key cannot tell whether it was loaded before. There the unit is
*the row at its place in its source*, and a source is a file, by its path, or a batch that the caller names. The ledger keeps,
of each source, how far it was read, which lines up to there were not taken, and a checksum of those that were. A source that
comes again must still hold the rows that were taken where they were; then the lines that were not, and those behind, are
taken now. So a file that is repeated, that has grown, or whose wrong lines were mended is safe. One in which taken rows have
changed is refused.

Rows in memory have no name. A batch that holds, at their places, all rows that an earlier one with rejected rows brought, is
that batch again. One that is equal to a source as a whole could be a repeat or an equal increment: it is refused, and a name
tells.

Under `duplicates = "last"`, what is loaded last stands: rows in memory are always taken, and the rows of a file that were taken
are not put back over later ones.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from pathlib import Path
from typing import Final

import duckdb

from multifacet.graphdb.loading.batch import Batch
from multifacet.graphdb.schema import Relation
from multifacet.graphdb.sql import GraphError, run
from multifacet.graphdb.storage.layout import key_columns, payload_columns

#: Names of sources are kept as hashes: a path can spell an id that is to be forgotten.
_SOURCE: Final = "coalesce(_mf_file, '')"
_WAS_TAKEN: Final = (
    f"(EXISTS (SELECT 1 FROM _mf_known AS known WHERE known.source = {_SOURCE} AND _mf_line < known.until) "
    f"AND NOT EXISTS (SELECT 1 FROM _mf_known_left AS skipped WHERE skipped.source = {_SOURCE} AND skipped.line = _mf_line))"
)
_WAS_LEFT_NOW: Final = (
    f"EXISTS (SELECT 1 FROM _mf_left_now AS skipped WHERE skipped.source = {_SOURCE} AND skipped.line = _mf_line)"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """Rows, whatever their order: their number, and the sum of their hashes."""

    count: int = 0
    total: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the ledger has of a source: rows before line `until` were taken, but for `num_left` of them."""

    source_id: int
    load_id: int
    until: int
    content: _Content
    num_left: int


class Ledger:
    """The account of the rows that one load of a relation takes.

    Args:
        connection: Within a transaction.
        relation: The relation.
        batch: The rows of the load.
        name: The caller's name of the batch, or None.
        load_id: The load.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, relation: Relation, batch: Batch, name: str | None, load_id: int
    ) -> None:
        self._connection = connection
        self._relation = relation
        self._batch = batch
        self._load_id = load_id
        self._is_unnamed = name is None and not batch.files
        self._keys = _keys(batch.files, name)
        self._known: dict[str, _Known] = {}
        self._counts_rows = relation.duplicates in {"sum", "all"}
        overwrites = relation.duplicates == "last" and bool(payload_columns(relation)) and not self._is_unnamed
        self._is_kept = self._counts_rows or overwrites

    def leave_out_taken(self) -> None:
        """Narrows the batch, whose wrong rows have been set aside, to the rows that have not been taken yet.

        Raises:
            GraphError: Rows that were taken have changed, or it cannot be told whether they were.
        """
        if not self._is_kept:
            return
        contents = self._contents()
        if self._is_unnamed and (again := self._again()) is not None:
            self._known[""] = again
        elif not self._is_unnamed:
            found = {source: self._find(key) for source, key in self._keys.items()}
            self._known = {source: known for source, known in found.items() if known is not None}
        for source, content in contents.items():
            if source not in self._known and self._counts_rows:
                self._refuse_repeat(source, content)
        if not self._known:
            return
        self._list(self._known)
        if any(contents.get(source) != known.content or known.num_left for source, known in self._known.items()):
            self._check(self._contents(_WAS_TAKEN))
        self._batch.narrow(f"NOT {_WAS_TAKEN}")

    def record(self) -> None:
        """Writes what the load took, once all that it did not take has been set aside."""
        if not self._is_kept:
            return
        rejected = f"SELECT DISTINCT coalesce(file, '') AS source, row AS line FROM _rejected WHERE load_id = {self._load_id}"
        run(self._connection, f"CREATE OR REPLACE TEMP TABLE _mf_left_now AS {rejected}")
        is_any_left = run(self._connection, "SELECT count(*) FROM _mf_left_now")[0][0]
        taken = self._contents(f"NOT {_WAS_LEFT_NOW}" if is_any_left else "true")
        ends = dict(run(self._connection, f"SELECT coalesce(file, ''), max(line) + 1 FROM {self._batch.places()} GROUP BY 1"))
        for source, until in ends.items():
            self._write(source, int(until), taken.get(source, _Content()))
        run(self._connection, "DROP TABLE _mf_left_now")

    def _contents(self, condition: str = "true") -> dict[str, _Content]:
        """Source -> the content of its right rows that a condition holds for."""
        values = ", ".join([*key_columns(self._relation), *payload_columns(self._relation)])
        rows = self._batch.select(f"{_SOURCE} AS _mf_source", where=condition)
        query = f"SELECT _mf_source, count(*), sum(md5_number_lower(row({values})::VARCHAR)::HUGEINT) FROM {rows} GROUP BY 1"
        return {source: _Content(count=count, total=int(total)) for source, count, total in run(self._connection, query)}

    def _find(self, key: str) -> _Known | None:
        found = self._sources("name = ?", [key])
        return found[0] if found else None

    def _again(self) -> _Known | None:
        """The earlier batch in memory with rejected rows, all of whose taken rows this one has at their places."""
        for known in self._sources("name IS NULL AND taken > 0", []):
            if known.num_left:
                self._list({"": known})
                if self._contents(_WAS_TAKEN).get("") == known.content:
                    return known
        return None

    def _sources(self, condition: str, values: list[str]) -> list[_Known]:
        query = (
            "SELECT source_id, load_id, until, taken, content, (SELECT count(*) FROM _left WHERE _left.source_id = "
            "_source.source_id) "
            f"FROM _source WHERE relation = ? AND {condition} ORDER BY source_id DESC"
        )
        return [
            _Known(source_id=number, load_id=load, until=until, content=_Content(count=taken, total=int(total)), num_left=left)
            for number, load, until, taken, total, left in run(self._connection, query, [self._relation.name, *values])
        ]

    def _list(self, known: dict[str, _Known]) -> None:
        """Lays sources out as the tables that `_WAS_TAKEN` reads."""
        connection = self._connection
        run(connection, "CREATE OR REPLACE TEMP TABLE _mf_known (source VARCHAR, source_id INTEGER, until BIGINT)")
        for source, what in known.items():
            run(connection, "INSERT INTO _mf_known VALUES (?, ?, ?)", [source, what.source_id, what.until])
        left = "SELECT source, line FROM _left JOIN _mf_known USING (source_id)"
        run(connection, f"CREATE OR REPLACE TEMP TABLE _mf_known_left AS {left}")

    def _check(self, contents: dict[str, _Content]) -> None:
        for source, known in list(self._known.items()):
            if contents.get(source, _Content()) == known.content:
                continue
            if self._counts_rows:
                msg = (
                    f"edges of {self._relation}: rows of {source or 'this batch'} that load {known.load_id} took are "
                    f"no longer where they "
                    f"were, so that it cannot be told which of its rows are new. If all of them are, load it with "
                    f"batch='some new name'; "
                    "otherwise give the new rows alone"
                )
                raise GraphError(msg)
            # What is loaded last stands: another content under the same name is a later word.
            run(self._connection, f"DELETE FROM _source WHERE source_id = {known.source_id}")
            run(self._connection, f"DELETE FROM _left WHERE source_id = {known.source_id}")
            del self._known[source]
        self._list(self._known)

    def _refuse_repeat(self, source: str, content: _Content) -> None:
        found = run(
            self._connection,
            "SELECT _source.load_id, source, loaded_at FROM _source JOIN _load USING (load_id) "
            "WHERE relation = ? AND taken = ? AND content = ? AND taken > 0",
            [self._relation.name, content.count, content.total],
        )
        if not found or self._keys.get(source, "").startswith("batch "):
            return
        load_id, name, loaded_at = found[0]
        msg = (
            f"edges of {self._relation}: {source or 'this batch'} has the same rows as load {load_id} ({name}, "
            f"{loaded_at:%Y-%m-%d %H:%M}), "
            f"and duplicates = {self._relation.duplicates!r} makes every row count. If it is a repeat, there is "
            f"nothing to load; if these "
            "are further rows that look alike, say so by a name of their own: batch='2026-11-30T12'"
        )
        raise GraphError(msg)

    def _write(self, source: str, until: int, taken: _Content) -> None:
        known = self._known.get(source)
        if known is None:
            number = int(run(self._connection, "SELECT coalesce(max(source_id) + 1, 0) FROM _source")[0][0])
            fields = [number, self._relation.name, self._keys.get(source), self._load_id, until, taken.count, taken.total]
            run(self._connection, "INSERT INTO _source VALUES (?, ?, ?, ?, ?, ?, ?)", fields)
        else:
            number = known.source_id
            setters = "load_id = ?, until = greatest(until, ?), taken = taken + ?, content = content + ?"
            fields = [self._load_id, until, taken.count, taken.total, number]
            run(self._connection, f"UPDATE _source SET {setters} WHERE source_id = ?", fields)
            run(self._connection, f"DELETE FROM _left WHERE source_id = {number}")
        run(self._connection, f"INSERT INTO _left SELECT {number}, line FROM _mf_left_now WHERE source = ?", [source])


def _keys(files: list[str], name: str | None) -> dict[str, str]:
    """What each file, or the batch in memory ('' as its source), is known by; nothing for a batch without a name.

    Example:
        >>> list(_keys([], None)), _keys(["a/x.csv", "b/x.csv"], "may").keys() == {"a/x.csv", "b/x.csv"}
        ([], True)
    """
    if name is None:
        # An address is the same from every folder.
        return {file: _hashed("file", file if "://" in file else str(Path(file).absolute())) for file in files}
    if not files:
        return {"": _hashed("batch", name)}
    # A batch's files are known by their own names: they may lie in another folder when they come again.
    seen: collections.Counter[str] = collections.Counter()
    keys = {}
    for file in files:
        own = Path(file).name
        keys[file] = _hashed("batch", f"{name}\0{own}\0{seen[own]}")
        seen[own] += 1
    return keys


def _hashed(kind: str, text: str) -> str:
    return f"{kind} {hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}"
