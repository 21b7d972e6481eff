"""What tells the content of one window from another's, in whatever order it was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import duckdb
import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.schema import GraphSchema, NodeType, Relation
from multifacet.graphdb.sql import quote
from multifacet.graphdb.storage.layout import key_columns
from multifacet.graphdb.windows.edge_reader import numbers
from multifacet.graphdb.windows.edges import Edges
from multifacet.graphdb.windows.members import Members
from multifacet.graphdb.windows.window import Window

Hashes = NDArray[np.uint64]


def fingerprint_of(
    cursor: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relations: Sequence[Relation],
    windows: Mapping[str, Window],
    members: Mapping[str, Members],
    edges_of: Callable[[str], Edges],
) -> str:
    """Give the SHA-256 (hex) of a window's nodes and edges by external id, properties included.

    Args:
        cursor: Within the view's transaction.
        schema: The store's.
        relations: The window's.
        windows: Relation name -> the rows that the window sees.
        members: Node type -> its nodes that belong to the window.
        edges_of: Gives the edges of a relation.
    """
    digest = hashlib.sha256()
    hashes = {node.name: _node_hashes(cursor, node, members[node.name]) for node in schema.nodes if node.name in members}
    for name in sorted(hashes):
        digest.update(f"node {name} {len(hashes[name])} {int(_mix(hashes[name]).sum())}\n".encode())
    for relation in sorted(relations, key=lambda relation: relation.name):
        edges = edges_of(relation.name)
        mixed = _mix(hashes[relation.src][edges.src.numpy()]) + hashes[relation.dst][edges.dst.numpy()]
        if edges.time is not None:
            mixed = _mix(mixed) + edges.time.numpy().view(np.uint64)
        if edges.weight is not None:
            mixed = _mix(mixed) + edges.weight.numpy().view(np.uint32)
        total = str(int(_mix(mixed).sum()))
        if relation.properties:
            total = f"{total} {_property_sum(cursor, relation, windows[relation.name], members, hashes)}"
        digest.update(f"edge {relation.model_dump_json()} {len(edges)} {total}\n".encode())
    return digest.hexdigest()


def _property_sum(
    cursor: duckdb.DuckDBPyConnection,
    relation: Relation,
    window: Window,
    members: Mapping[str, Members],
    hashes: Mapping[str, Hashes],
) -> int:
    """What tells the properties of a relation's edges, with their ends and times, from others."""
    content = ", ".join([*key_columns(relation)[2:], *map(quote, relation.properties)])
    query = f"SELECT src, dst, md5_number_lower(row({content})::VARCHAR) AS hash FROM {window.rows}"
    table = cursor.sql(query).to_arrow_table()
    ends = [
        hashes[name][members[name].rows(numbers(table, end, np.int32))]
        for end, name in (("src", relation.src), ("dst", relation.dst))
    ]
    return int(_mix(_mix(_mix(ends[0]) + ends[1]) + numbers(table, "hash", np.uint64)).sum())


def _node_hashes(cursor: duckdb.DuckDBPyConnection, node: NodeType, members: Members) -> Hashes:
    """A hash of each row's external id, and of its properties where its type has any."""
    content = "md5_number_lower(CAST(id AS VARCHAR))"
    if node.properties:
        content = f"xor({content}, md5_number_lower(row({', '.join(map(quote, node.properties))})::VARCHAR))"
    table = cursor.sql(f"SELECT idx, {content} AS hash FROM {quote(f'nodes_{node.name}')}").to_arrow_table()
    hashes = np.zeros(members.num_rows, np.uint64)
    hashes[members.rows(numbers(table, "idx", np.int32))] = numbers(table, "hash", np.uint64)
    return hashes


def _mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser (Steele et al. 2014): sums of mixed values tell multisets apart."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
