"""Loading edges: external ids to idx, bad rows set aside, all within the caller's transaction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Literal

import duckdb

from graphdb.batch import Batch, Rows, id_field, open_rows, property_field, time_field, weight_field
from graphdb.insertion import Insertion
from graphdb.layout import held_table, key_columns, node_table, payload_columns
from graphdb.mapping import create_and_map, join
from graphdb.report import LoadReport, next_load_id, record, rejected_by_reason
from graphdb.schema import GraphSchema, Relation
from graphdb.source import Source, describe
from graphdb.sql import changed, count, quote_text, run
from graphdb.storage import Storage

MissingNodes = Literal["create", "reject", "hold"]


def load_edges(
    connection: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    storage: Storage,
    relation: Relation,
    source: Source,
    *,
    columns: Mapping[str, str],
    missing_nodes: MissingNodes,
) -> LoadReport:
    """Adds the edges of `source`; an edge is known by (src, dst, time), or by (src, dst) where the relation has no time."""
    started = time.perf_counter()
    load_id = next_load_id(connection)
    wanted = [columns[name] for name in key_columns(relation)] + ([columns["weight"]] if relation.weighted else [])
    with open_rows(connection, source, [*wanted, *relation.properties], where=f"edges of {relation}") as rows:
        batch = _batch(connection, schema, relation, rows, columns)
        report = LoadReport(
            target=relation.name,
            source=describe(source),
            read=batch.read,
            loaded=0,
            already_there=batch.read,
            rejected={},
            created_nodes={},
            seconds=0.0,
        )
        content = _content(connection, relation, batch)
        if content is not None and count(connection, f"(FROM _load WHERE {_same_content(relation, content)})"):
            # Where every row counts, a batch is known again as a whole.
            return record(connection, load_id, dataclasses.replace(report, seconds=time.perf_counter() - started))
        batch.set_aside(load_id, relation.name)
        # Rows that are alike but for what they carry need an order among themselves, so that the first or last of them is one.
        order = rows.order if payload_columns(relation) and relation.duplicates != "all" else ()
        insertion = Insertion(connection, relation, storage.base(connection, relation))
        created: Mapping[str, int] = {}
        held = 0
        if missing_nodes == "create":
            with create_and_map(connection, schema, relation, batch, order) as mapped:
                loaded, created = insertion.insert(mapped.sql, len(order)), mapped.created
        else:
            if missing_nodes == "reject":
                batch.set_aside_where(load_id, relation.name, _unknown_end(relation))
            else:
                held = _hold(connection, relation, batch)
            given = batch.select(*(f"{expression} AS _order{position}" for position, expression in enumerate(order)))
            loaded = insertion.insert(join(connection, schema, relation, given, num_orders=len(order)), len(order))
    rejected = rejected_by_reason(connection, load_id)
    report = dataclasses.replace(
        report,
        loaded=loaded,
        already_there=batch.read - loaded - held - sum(rejected.values()),
        rejected=rejected,
        created_nodes=created,
        held=held,
        seconds=time.perf_counter() - started,
    )
    return record(connection, load_id, report, content)


def release_held(connection: duckdb.DuckDBPyConnection, schema: GraphSchema, storage: Storage, node: str) -> dict[str, int]:
    """Inserts the held edges of a node type whose ends are both known by now; returns their number by relation."""
    released = {}
    for relation in schema.relations:
        held = held_table(relation.name)
        if node not in {relation.src, relation.dst} or count(connection, held) == 0:
            continue
        known = f"src IN (SELECT id FROM {node_table(relation.src)}) AND dst IN (SELECT id FROM {node_table(relation.dst)})"
        if not count(connection, f"(FROM {held} WHERE {known})"):
            continue
        given = f"(SELECT *, rowid AS _order0 FROM {held} WHERE {known})"
        insertion = Insertion(connection, relation, storage.base(connection, relation))
        released[relation.name] = insertion.insert(join(connection, schema, relation, given, num_orders=1), 1)
        run(connection, f"DELETE FROM {held} WHERE {known}")
    return released


def _batch(
    connection: duckdb.DuckDBPyConnection, schema: GraphSchema, relation: Relation, rows: Rows, columns: Mapping[str, str]
) -> Batch:
    fields = [
        id_field(end, columns[end], rows.types[columns[end]], schema.node(name), raw=raw, label=end)
        for end, name, raw in (("src", relation.src, "src_or_id"), ("dst", relation.dst, "dst"))
    ]
    if relation.timed:
        fields.append(time_field(columns["time"], rows.types[columns["time"]], where=f"edges of {relation}"))
    if relation.weighted:
        fields.append(weight_field(columns["weight"]))
    fields += [property_field(name, kind) for name, kind in relation.properties.items()]
    return Batch(connection, rows, fields)


def _content(connection: duckdb.DuckDBPyConnection, relation: Relation, batch: Batch) -> str | None:
    """What tells a batch's content from another's, whatever the order of its rows."""
    if relation.duplicates not in {"sum", "all"} or batch.read == batch.bad:
        return None
    values = ", ".join([*key_columns(relation), *payload_columns(relation)])
    query = f"SELECT count(*), sum(md5_number_lower(row({values})::VARCHAR)::HUGEINT) FROM {batch.select()}"
    number, total = run(connection, query)[0]
    return f"{number}:{total}"


def _same_content(relation: Relation, content: str) -> str:
    return f"target = {quote_text(relation.name)} AND content = {quote_text(content)}"


def _unknown_end(relation: Relation) -> str:
    clauses = [
        f"WHEN _typed_{end} NOT IN (SELECT id FROM {node_table(name)}) THEN {quote_text(f'{end} is not a known {name}')}"
        for end, name in (("src", relation.src), ("dst", relation.dst))
    ]
    return f"CASE {' '.join(clauses)} END"


def _hold(connection: duckdb.DuckDBPyConnection, relation: Relation, batch: Batch) -> int:
    held = held_table(relation.name)
    unknown = " OR ".join(
        f"{end} NOT IN (SELECT id FROM {node_table(name)})" for end, name in (("src", relation.src), ("dst", relation.dst))
    )
    waiting = f"SELECT * FROM {batch.select()} WHERE {unknown}"
    if relation.duplicates != "all":
        key = ", ".join(key_columns(relation))
        waiting = f"SELECT DISTINCT ON ({key}) * FROM ({waiting}) ANTI JOIN {held} AS kept USING ({key})"
    return changed(connection, f"INSERT INTO {held} {waiting}")
