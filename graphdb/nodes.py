"""Loading nodes: external ids get their idx once, and for ever."""

from __future__ import annotations

import dataclasses
import time
from typing import Final, Literal

import duckdb

from multifacet.graphdb.batch import Batch, open_batch
from multifacet.graphdb.fields import id_field, property_field, time_field
from multifacet.graphdb.layout import SEEN, node_table
from multifacet.graphdb.reading import Reading
from multifacet.graphdb.report import LoadReport, next_load_id, record, refuse_too_many, rejected_by_reason
from multifacet.graphdb.schema import GraphSchema, NodeType, Relation
from multifacet.graphdb.source import Source, describe
from multifacet.graphdb.sql import GraphError, changed, quote, run

#: Whether a null in a load leaves a property as it was, or writes over it.
Nulls = Literal["keep", "write"]

_MAX_NODES: Final = 2**31 - 1
#: SQL of the time of the load.
NOW_US: Final = "epoch_us(now())"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NodeLoad:
    """What a load of nodes is asked to do.

    Attributes:
        node: The node type.
        id_column: Column of the external ids.
        time_column: Column of the time from which on a node exists, or None where that is the time of the load.
        nulls: What a null does to a property that has a value.
        max_rejected: Rows that may be set aside before nothing is loaded, or None.
        reading: How the source is read.
    """

    node: NodeType
    id_column: str
    time_column: str | None
    nulls: Nulls
    max_rejected: int | None
    reading: Reading

    @property
    def where(self) -> str:
        """What is loaded, for messages."""
        return f"nodes of {self.node.name!r}"


def load_nodes(connection: duckdb.DuckDBPyConnection, load: NodeLoad, source: Source) -> LoadReport:
    """Adds the nodes of `source`; the ids that exist keep their idx, and get the properties given now."""
    started = time.perf_counter()
    node, load_id = load.node, next_load_id(connection)
    fields = [id_field("id", load.id_column, node, raw="src_or_id")]
    if load.time_column is not None:
        fields.append(time_field(SEEN, load.time_column, is_optional=True))
    optional = [property_field(name, kind) for name, kind in node.properties.items()]
    with open_batch(connection, source, fields, load.reading, optional=optional, where=load.where) as batch:
        batch.set_aside(load_id, node.name)
        refuse_too_many(connection, load_id, load.max_rejected, where=load.where)
        names = [field.name for field in batch.fields if field.name in node.properties]
        _fold(connection, batch, names, load)
    _update(connection, node, names, load.nulls)
    properties = "".join(f", {quote(name)}" for name in names)
    loaded = insert_nodes(connection, node, f"SELECT id, {SEEN}{properties} FROM _latest", properties)
    run(connection, "DROP TABLE _latest")
    rejected = rejected_by_reason(connection, load_id)
    report = LoadReport(
        target=node.name,
        source=describe(source),
        read=batch.read,
        loaded=loaded,
        already_there=batch.read - loaded - sum(rejected.values()),
        rejected=rejected,
        created_nodes={},
        seconds=time.perf_counter() - started,
        absent=tuple(name for name in node.properties if name not in names),
    )
    return record(connection, load_id, report)


def num_idx(connection: duckdb.DuckDBPyConnection, name: str) -> int:
    """Gives the number of idx ever given to nodes of a type: those of forgotten nodes are not given again."""
    query = (
        f"SELECT coalesce(max(idx) + 1, 0) FROM (SELECT max(idx) AS idx FROM {node_table(name)} "
        "UNION ALL SELECT max(idx) FROM _removal WHERE kind = 'forget' AND target = ?)"
    )
    return int(run(connection, query, [name])[0][0])


def insert_nodes(connection: duckdb.DuckDBPyConnection, node: NodeType, ids: str, properties: str = "") -> int:
    """Gives an idx to those ids that have none.

    Args:
        connection: Within a transaction.
        node: The node type.
        ids: A query of `id`, each standing there once, of when it is first seen, and of the `properties`.
        properties: Quoted names of properties, each behind a comma.

    Returns:
        The number of new nodes.
    """
    table = node_table(node.name)
    first = num_idx(connection, node.name)
    unseen = f" ANTI JOIN {table} AS kept USING (id)" if first else ""
    num_new = changed(
        connection,
        f"INSERT INTO {table} (idx, id, {SEEN}{properties}) "
        f"SELECT {first} + row_number() OVER (ORDER BY id) - 1, id, {SEEN}{properties} FROM ({ids}) AS given{unseen}",
    )
    if first + num_new > _MAX_NODES:
        msg = f"node type {node.name!r} would pass {_MAX_NODES:,} nodes, the most that an int32 idx can tell apart"
        raise GraphError(msg)
    return num_new


def see_nodes(
    connection: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relation: Relation,
    edges: str,
    before: dict[str, int] | None = None,
) -> None:
    """Lets the nodes at the ends of edges be seen from the edges' time on, where they were not seen before.

    Args:
        connection: Within a transaction.
        schema: The store's schema.
        relation: The edges' relation.
        edges: A FROM clause with src and dst by idx, and time.
        before: Node type -> idx given before the load, the nodes behind which are right already; all by default.
    """
    if not relation.timed:
        return
    first = run(connection, f"SELECT epoch_us(min(time)) FROM {edges}")[0][0]
    if first is None:
        return
    for end, name in (("src", relation.src), ("dst", relation.dst)):
        nodes = node_table(schema.node(name).name)
        known = "" if before is None else f" AND idx < {before[name]}"
        if not run(connection, f"SELECT count(*) FROM {nodes} WHERE {SEEN} > {first}{known}")[0][0]:
            continue
        seen = f"SELECT {end} AS idx, min(epoch_us(time)) AS seen FROM {edges} GROUP BY 1"
        run(
            connection,
            f"UPDATE {nodes} AS kept SET {SEEN} = given.seen FROM ({seen}) AS given "
            f"WHERE kept.idx = given.idx AND given.seen < kept.{SEEN}",
        )


def _fold(connection: duckdb.DuckDBPyConnection, batch: Batch, names: list[str], load: NodeLoad) -> None:
    """Leaves one row for each id: of each property the last value, as if the rows came one by one."""
    seen = f"coalesce(min(epoch_us({SEEN})), {NOW_US})" if load.time_column is not None else NOW_US
    order = ", ".join(batch.order)
    # Most feeds name a node once: then nothing has to be put in order.
    is_single = run(connection, f"SELECT count(*) = count(DISTINCT id) FROM {batch.select()}")[0][0]
    if is_single:
        seen = seen.replace("min(", "(")
        columns = "".join(f", {quote(name)}" for name in names)
        query = f"SELECT id, {seen} AS {SEEN}{columns} FROM {batch.select()}"
    else:
        given = "FILTER ({0} IS NOT NULL)" if load.nulls == "keep" else ""
        columns = "".join(
            f", last({quote(name)} ORDER BY {order}) {given.format(quote(name))} AS {quote(name)}" for name in names
        )
        query = f"SELECT id, {seen} AS {SEEN}{columns} FROM {batch.select(*batch.order)} GROUP BY id"
    run(connection, f"CREATE OR REPLACE TEMP TABLE _latest AS {query}")


def _update(connection: duckdb.DuckDBPyConnection, node: NodeType, names: list[str], nulls: Nulls) -> None:
    """Gives the nodes that exist what the load says of them."""
    columns = [quote(name) for name in names]
    value = "coalesce(given.{0}, kept.{0})" if nulls == "keep" else "given.{0}"
    setters = [f"{column} = {value.format(column)}" for column in columns] + [f"{SEEN} = least(kept.{SEEN}, given.{SEEN})"]
    differs = [f"kept.{column} IS DISTINCT FROM {value.format(column)}" for column in columns] + [f"given.{SEEN} < kept.{SEEN}"]
    run(
        connection,
        f"UPDATE {node_table(node.name)} AS kept SET {', '.join(setters)} FROM _latest AS given "
        f"WHERE kept.id = given.id AND ({' OR '.join(differs)})",
    )
