"""Loading rows into a store: external ids to idx, bad rows set aside, all within the caller's transaction."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

import duckdb

from graphdb.schema import GraphSchema, NodeType, Relation
from graphdb.source import Source, describe, scan
from graphdb.sql import GraphError, changed, count, quote, quote_text, run

logger = logging.getLogger(__name__)

MissingNodes = Literal["create", "reject"]
_MAX_NODES = 2**31 - 1
_INTEGERS = frozenset(
    {
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "HUGEINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "UHUGEINT",
    }
)
_TIMES = ("TIMESTAMP", "DATE")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What became of the rows of one load: `read == loaded + already_there + num_rejected`.

    Attributes:
        target: The node type or relation.
        source: Where the rows came from.
        read: Rows read.
        loaded: Rows that are new in the store.
        already_there: Rows whose key the store, or an earlier row of the load, already had.
        rejected: Reason -> rows set aside for it; the rows themselves are in the `rejected_rows` view.
        created_nodes: Node type -> nodes that this load of edges created.
        seconds: Wall time.
    """

    target: str
    source: str
    read: int
    loaded: int
    already_there: int
    rejected: Mapping[str, int]
    created_nodes: Mapping[str, int]
    seconds: float

    @property
    def num_rejected(self) -> int:
        """Rows set aside, whatever the reason."""
        return sum(self.rejected.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able fields."""
        return dataclasses.asdict(self)


def node_table(name: str) -> str:
    """Quoted name of the table that maps a node type's external ids to idx."""
    return quote(f"_node_{name}")


def edge_table(name: str) -> str:
    """Quoted name of a relation's table, clustered by (dst, time)."""
    return quote(f"_edge_{name}")


def delta_table(name: str) -> str:
    """Quoted name of the table of a relation's edges that came since the last compaction."""
    return quote(f"_delta_{name}")


def edge_columns(relation: Relation) -> str:
    """The columns of a relation's tables, in order."""
    return ", ".join(["src", "dst", *(["time"] if relation.timed else []), *(["weight"] if relation.weighted else [])])


def edge_order(relation: Relation) -> str:
    """The clustering of a relation's table."""
    return "dst, time, src" if relation.timed else "dst, src"


def load_nodes(connection: duckdb.DuckDBPyConnection, node: NodeType, source: Source, *, id_column: str) -> LoadReport:
    """Adds the nodes of `source`; the ids that exist keep their idx and get the properties given now."""
    started = time.perf_counter()
    table = node_table(node.name)
    with scan(connection, source) as rows:
        types = _column_types(connection, rows, [id_column, *node.properties], where=f"nodes of {node.name!r}")
        properties = "".join(f", TRY_CAST({quote(name)} AS {kind}) AS {quote(name)}" for name, kind in node.properties.items())
        unparsed = "".join(
            f" WHEN {quote(name)} IS NOT NULL AND TRY_CAST({quote(name)} AS {kind}) IS NULL"
            f" THEN {quote_text(f'{name} is not a {kind}')}"
            for name, kind in node.properties.items()
        )
        identifier = _id_expression(id_column, types[id_column], node)
        run(
            connection,
            f"CREATE OR REPLACE TEMP TABLE _staged AS SELECT row_number() OVER () - 1 AS row, {identifier} AS id{properties}, "
            f"CAST({quote(id_column)} AS VARCHAR) AS raw_id, "
            f"CASE {_id_reasons(id_column, identifier, node)}{unparsed} END AS reason FROM {rows}",
        )
    read = count(connection, "_staged")
    load_id = _next_load_id(connection)
    rejected = _set_aside(connection, load_id, node.name, "raw_id, NULL, NULL, NULL")
    names = "".join(f", {quote(name)}" for name in node.properties)
    # The last row of an id in the load wins, as it would if the rows came one by one.
    run(
        connection,
        f"CREATE OR REPLACE TEMP TABLE _latest AS SELECT id{names}, row FROM _staged WHERE reason IS NULL "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY row DESC) = 1",
    )
    if node.properties:
        setters = ", ".join(f"{quote(name)} = given.{quote(name)}" for name in node.properties)
        differs = " OR ".join(f"kept.{quote(name)} IS DISTINCT FROM given.{quote(name)}" for name in node.properties)
        run(connection, f"UPDATE {table} AS kept SET {setters} FROM _latest AS given WHERE kept.id = given.id AND ({differs})")
    loaded = _insert_nodes(connection, node, f"SELECT id{names} FROM _latest", names)
    run(connection, "DROP TABLE _staged; DROP TABLE _latest")
    return _finish(connection, load_id, node.name, source, read, loaded, rejected, {}, started)


def load_edges(
    connection: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relation: Relation,
    source: Source,
    *,
    columns: Mapping[str, str],
    missing_nodes: MissingNodes,
) -> LoadReport:
    """Adds the edges of `source`; an edge is known by (src, dst, time), or by (src, dst) where the relation has no time."""
    started = time.perf_counter()
    src_type, dst_type = schema.node(relation.src), schema.node(relation.dst)
    _stage_edges(connection, relation, source, columns, src_type, dst_type)
    read = count(connection, "_staged")
    created: dict[str, int] = {}
    for end, node in (("src", src_type), ("dst", dst_type)):
        if missing_nodes == "create":
            ids = f"SELECT DISTINCT {end}_id AS id FROM _staged WHERE reason IS NULL"
            if num_new := _insert_nodes(connection, node, ids, ""):
                created[node.name] = created.get(node.name, 0) + num_new
        else:
            run(
                connection,
                f"UPDATE _staged SET reason = {quote_text(f'{end} is not a known {node.name}')} WHERE reason IS NULL "
                f"AND {end}_id NOT IN (SELECT id FROM {node_table(node.name)})",
            )
    load_id = _next_load_id(connection)
    rejected = _set_aside(connection, load_id, relation.name, "raw_src, raw_dst, raw_time, raw_weight")
    loaded = _insert_edges(connection, relation)
    run(connection, "DROP TABLE _staged")
    return _finish(connection, load_id, relation.name, source, read, loaded, rejected, created, started)


def _stage_edges(
    connection: duckdb.DuckDBPyConnection,
    relation: Relation,
    source: Source,
    columns: Mapping[str, str],
    src_type: NodeType,
    dst_type: NodeType,
) -> None:
    wanted = ["src", "dst", *(["time"] if relation.timed else []), *(["weight"] if relation.weighted else [])]
    with scan(connection, source) as rows:
        types = _column_types(connection, rows, [columns[name] for name in wanted], where=f"edges of {relation}")
        fields, reasons = [], []
        for end, node in (("src", src_type), ("dst", dst_type)):
            identifier = _id_expression(columns[end], types[columns[end]], node)
            fields.append(f"{identifier} AS {end}_id")
            reasons.append(_id_reasons(columns[end], identifier, node, end))
        if relation.timed:
            column, kind = quote(columns["time"]), types[columns["time"]]
            if not kind.startswith((*_TIMES, "VARCHAR")):
                msg = (
                    f"edges of {relation}: column {columns['time']!r} is {kind}, expected a TIMESTAMP, DATE or text; "
                    "convert seconds with to_timestamp(column) in a Query"
                )
                raise GraphError(msg)
            fields.append(f"TRY_CAST({column} AS TIMESTAMP) AS time")
            reasons.append(f"WHEN {column} IS NULL THEN 'time is null'")
            reasons.append(
                f"WHEN TRY_CAST({column} AS TIMESTAMP) IS NULL OR NOT isfinite(TRY_CAST({column} AS TIMESTAMP)) "
                "THEN 'time is not a timestamp'"
            )
        if relation.weighted:
            column = quote(columns["weight"])
            fields.append(f"TRY_CAST({column} AS FLOAT) AS weight")
            reasons.append(
                f"WHEN TRY_CAST({column} AS FLOAT) IS NULL OR NOT isfinite(TRY_CAST({column} AS FLOAT)) "
                "THEN 'weight is not a finite number'"
            )
        raw = [
            f"CAST({quote(columns[name])} AS VARCHAR) AS raw_{name}" if name in wanted else f"NULL::VARCHAR AS raw_{name}"
            for name in ("src", "dst", "time", "weight")
        ]
        reason = f"CASE {' '.join(reasons)} END"
        # The text of a row is kept only where the row is rejected: it is wide.
        kept = [f"CASE WHEN reason IS NOT NULL THEN raw_{name} END AS raw_{name}" for name in ("src", "dst", "time", "weight")]
        run(
            connection,
            f"CREATE OR REPLACE TEMP TABLE _staged AS SELECT * REPLACE ({', '.join(kept)}) FROM ("
            f"SELECT row_number() OVER () - 1 AS row, {', '.join(fields)}, {', '.join(raw)}, {reason} AS reason FROM {rows})",
        )


def _insert_edges(connection: duckdb.DuckDBPyConnection, relation: Relation) -> int:
    key = "src, dst, time" if relation.timed else "src, dst"
    names, order = edge_columns(relation), edge_order(relation)
    base, delta = edge_table(relation.name), delta_table(relation.name)
    others = "".join(f", staged.{name}" for name in ("time", "weight") if name in names)
    first = f"DISTINCT {key}" if not relation.weighted else f"{key}, arg_min(weight, row) AS weight"
    group = f" GROUP BY {key}" if relation.weighted else ""
    is_empty = count(connection, base) == 0 and count(connection, delta) == 0
    unseen = "" if is_empty else f" ANTI JOIN {base} AS kept USING ({key}) ANTI JOIN {delta} AS recent USING ({key})"
    # A first load is clustered at once; later ones wait in the delta for a compaction.
    target = base if is_empty else delta
    return changed(
        connection,
        f"INSERT INTO {target} SELECT {names} FROM (SELECT {first} FROM ("
        f"SELECT src.idx AS src, dst.idx AS dst{others}, staged.row FROM _staged AS staged "
        f"JOIN {node_table(relation.src)} AS src ON src.id = staged.src_id "
        f"JOIN {node_table(relation.dst)} AS dst ON dst.id = staged.dst_id WHERE staged.reason IS NULL){group}) AS given"
        f"{unseen} ORDER BY {order}",
    )


def _insert_nodes(connection: duckdb.DuckDBPyConnection, node: NodeType, ids: str, properties: str) -> int:
    table = node_table(node.name)
    num_new = changed(
        connection,
        f"INSERT INTO {table} (idx, id{properties}) "
        f"SELECT (SELECT coalesce(max(idx) + 1, 0) FROM {table}) + row_number() OVER (ORDER BY id) - 1, id{properties} "
        f"FROM ({ids}) AS given ANTI JOIN {table} AS kept USING (id)",
    )
    if count(connection, table) > _MAX_NODES:
        msg = f"node type {node.name!r} would pass {_MAX_NODES:,} nodes, the most that an int32 idx can tell apart"
        raise GraphError(msg)
    return num_new


def _set_aside(connection: duckdb.DuckDBPyConnection, load_id: int, target: str, raw: str) -> dict[str, int]:
    run(
        connection,
        f"INSERT INTO _rejected SELECT ?, ?, row, reason, {raw} FROM _staged WHERE reason IS NOT NULL",
        [load_id, target],
    )
    rows = run(
        connection, "SELECT reason, count(*) FROM _rejected WHERE load_id = ? GROUP BY reason ORDER BY reason", [load_id]
    )
    return dict(rows)


def _finish(
    connection: duckdb.DuckDBPyConnection,
    load_id: int,
    target: str,
    source: Source,
    read: int,
    loaded: int,
    rejected: Mapping[str, int],
    created: Mapping[str, int],
    started: float,
) -> LoadReport:
    report = LoadReport(
        target=target,
        source=describe(source),
        read=read,
        loaded=loaded,
        already_there=read - loaded - sum(rejected.values()),
        rejected=rejected,
        created_nodes=created,
        seconds=time.perf_counter() - started,
    )
    run(
        connection,
        "INSERT INTO _load VALUES (?, ?, ?, ?, ?, ?, ?, now()::TIMESTAMP)",
        [load_id, target, report.source, read, loaded, report.already_there, report.num_rejected],
    )
    logger.info(
        "%s: read %d rows, loaded %d, already there %d, rejected %d in %.2f s",
        target, read, loaded, report.already_there, report.num_rejected, report.seconds,
    )  # fmt: skip
    return report


def _column_types(connection: duckdb.DuckDBPyConnection, rows: str, wanted: list[str], *, where: str) -> dict[str, str]:
    types = {name: kind for name, kind, *_ in run(connection, f"DESCRIBE SELECT * FROM {rows}")}
    missing = [name for name in wanted if name not in types]
    if missing:
        msg = f"{where}: column {missing[0]!r} is missing, the source has {list(types)}; name it in the call or rename it"
        raise GraphError(msg)
    return types


def _id_expression(column: str, kind: str, node: NodeType) -> str:
    name = quote(column)
    if node.id_type == "string":
        return f"CAST({name} AS VARCHAR)"
    if kind in _INTEGERS:
        return name if kind == "BIGINT" else f"TRY_CAST({name} AS BIGINT)"
    if kind == "VARCHAR":
        # TRY_CAST alone would round '1.5' to 2.
        return f"CASE WHEN regexp_full_match({name}, '[+-]?[0-9]+') THEN TRY_CAST({name} AS BIGINT) END"
    msg = f"column {column!r} is {kind}, but ids of {node.name!r} are int64: cast it to BIGINT, or declare id_type = 'string'"
    raise GraphError(msg)


def _id_reasons(column: str, identifier: str, node: NodeType, label: str = "id") -> str:
    null = f"WHEN {quote(column)} IS NULL THEN {quote_text(f'{label} is null')}"
    if node.id_type == "string":
        return null
    return f"{null} WHEN {identifier} IS NULL THEN {quote_text(f'{label} is not an int64')}"


def _next_load_id(connection: duckdb.DuckDBPyConnection) -> int:
    return int(run(connection, "SELECT coalesce(max(load_id) + 1, 0) FROM _load")[0][0])
