"""Loading edges: external ids to idx, bad rows set aside, all within the caller's transaction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Literal

import duckdb

from multifacet.graphdb.batch import Batch, open_batch
from multifacet.graphdb.fields import Field, id_field, property_field, time_field, weight_field
from multifacet.graphdb.insertion import Insertion
from multifacet.graphdb.layout import held_table, key_columns, node_table, payload_columns
from multifacet.graphdb.ledger import Ledger
from multifacet.graphdb.mapping import create_and_map, join
from multifacet.graphdb.nodes import see_nodes
from multifacet.graphdb.reading import Reading
from multifacet.graphdb.report import LoadReport, next_load_id, record, refuse_too_many, rejected_by_reason
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.source import Source, describe
from multifacet.graphdb.sql import changed, count, quote_text, run
from multifacet.graphdb.storage import Storage

MissingNodes = Literal["create", "reject", "hold"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EdgeLoad:
    """What a load of edges is asked to do.

    Attributes:
        relation: The relation.
        columns: Column of the source for `src`, `dst`, `time` and `weight`.
        missing_nodes: What becomes of an edge whose node is unknown.
        batch: The caller's name of the batch, or None.
        max_rejected: Rows that may be set aside before nothing is loaded, or None.
        reading: How the source is read.
    """

    relation: Relation
    columns: Mapping[str, str]
    missing_nodes: MissingNodes
    batch: str | None
    max_rejected: int | None
    reading: Reading

    @property
    def where(self) -> str:
        """What is loaded, for messages."""
        return f"edges of {self.relation}"


def load_edges(
    connection: duckdb.DuckDBPyConnection, schema: GraphSchema, storage: Storage, load: EdgeLoad, source: Source
) -> LoadReport:
    """Adds the edges of `source`; an edge is known by (src, dst, time), or by (src, dst) where the relation has no time."""
    started = time.perf_counter()
    relation, load_id = load.relation, next_load_id(connection)
    with open_batch(connection, source, _fields(schema, load), load.reading, where=load.where) as batch:
        batch.set_aside(load_id, relation.name)
        ledger = Ledger(connection, relation, batch, load.batch, load_id)
        ledger.leave_out_taken()
        # Rows that are alike but for what they carry need an order among themselves, so that the first or last of them is one.
        order = batch.order if payload_columns(relation) and relation.duplicates != "all" else ()
        insertion = Insertion(connection, relation, storage.base(connection, relation))
        created: Mapping[str, int] = {}
        held = 0
        if load.missing_nodes == "create":
            with create_and_map(connection, schema, relation, batch, order) as mapped:
                loaded, created = insertion.insert(mapped.sql, len(order)), mapped.created
        else:
            if load.missing_nodes == "reject":
                batch.set_aside_where(load_id, relation.name, _unknown_end(relation))
            else:
                held = _hold(connection, relation, batch)
            given = batch.select(*(f"{expression} AS _mf_order{position}" for position, expression in enumerate(order)))
            known = join(connection, schema, relation, given, num_orders=len(order))
            see_nodes(connection, schema, relation, known)
            loaded = insertion.insert(known, len(order))
        refuse_too_many(connection, load_id, load.max_rejected, where=load.where)
        ledger.record()
    rejected = rejected_by_reason(connection, load_id)
    report = LoadReport(
        target=relation.name,
        source=describe(source),
        read=batch.read,
        loaded=loaded,
        already_there=batch.read - loaded - held - sum(rejected.values()),
        rejected=rejected,
        created_nodes=created,
        held=held,
        seconds=time.perf_counter() - started,
    )
    return record(connection, load_id, report)


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
        given = f"(SELECT *, rowid AS _mf_order0 FROM {held} WHERE {known})"
        rows = join(connection, schema, relation, given, num_orders=1)
        see_nodes(connection, schema, relation, rows)
        released[relation.name] = Insertion(connection, relation, storage.base(connection, relation)).insert(rows, 1)
        run(connection, f"DELETE FROM {held} WHERE {known}")
    return released


def _fields(schema: GraphSchema, load: EdgeLoad) -> list[Field]:
    relation, columns = load.relation, load.columns
    fields = [
        id_field(end, columns[end], schema.node(name), raw=raw)
        for end, name, raw in (("src", relation.src, "src_or_id"), ("dst", relation.dst, "dst"))
    ]
    if relation.timed:
        fields.append(time_field("time", columns["time"]))
    if relation.weighted:
        fields.append(weight_field(columns["weight"]))
    return [*fields, *(property_field(name, kind) for name, kind in relation.properties.items())]


def _unknown_end(relation: Relation) -> str:
    clauses = [
        f"WHEN {end} NOT IN (SELECT id FROM {node_table(name)}) THEN {quote_text(f'{end} is not a known {name}')}"
        for end, name in (("src", relation.src), ("dst", relation.dst))
    ]
    return f"CASE {' '.join(clauses)} END"


def _hold(connection: duckdb.DuckDBPyConnection, relation: Relation, batch: Batch) -> int:
    """Keeps the rows that lack a node, in order; the policy is applied when they are released."""
    held = held_table(relation.name)
    columns = ", ".join([*key_columns(relation), *payload_columns(relation)])
    unknown = " OR ".join(
        f"{end} NOT IN (SELECT id FROM {node_table(name)})" for end, name in (("src", relation.src), ("dst", relation.dst))
    )
    order = ", ".join(batch.order)
    waiting = f"SELECT {columns}, {order} FROM {batch.select(*batch.order)} WHERE {unknown}"
    if relation.duplicates == "first" or (relation.duplicates == "last" and not payload_columns(relation)):
        key = ", ".join(key_columns(relation))
        waiting = (
            f"SELECT DISTINCT ON ({key}) * FROM ({waiting}) ANTI JOIN {held} AS kept USING ({key}) ORDER BY {key}, {order}"
        )
    return changed(connection, f"INSERT INTO {held} ({columns}) SELECT {columns} FROM ({waiting}) ORDER BY {order}")
