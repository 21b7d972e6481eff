"""What tells the content of one window from another's, in whatever order it was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import duckdb
import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.schema import GraphSchema, NodeType, Relation
from multifacet.graphdb.sql import quote
from multifacet.graphdb.storage.layout import key_columns
from multifacet.graphdb.windows.edge_reader import EdgeReader, numbers
from multifacet.graphdb.windows.members import Members

Hashes = NDArray[np.uint64]

_BATCH_ROWS: Final = 1 << 20
_MASK: Final = (1 << 64) - 1


def fingerprint_of(
    cursor: duckdb.DuckDBPyConnection,
    schema: GraphSchema,
    relations: Sequence[Relation],
    members: Mapping[str, Members],
    reader: EdgeReader,
) -> str:
    """Give the SHA-256 (hex) of a window's nodes and edges by external id, properties included.

    Edges are read in parts, in any order: their hashes are summed up.

    Args:
        cursor: Within the view's transaction.
        schema: The store's.
        relations: The window's.
        members: Node type -> its nodes that belong to the window.
        reader: Reads the window's edges.
    """
    digest = hashlib.sha256()
    hashes = {node.name: _node_hashes(cursor, node, members[node.name]) for node in schema.nodes if node.name in members}
    for name in sorted(hashes):
        digest.update(f"node {name} {len(hashes[name])} {int(_mix(hashes[name]).sum())}\n".encode())
    for relation in sorted(relations, key=lambda relation: relation.name):
        num_edges, total, property_total = _edge_sums(relation, reader, hashes)
        sums = f"{total} {property_total}" if relation.properties else str(total)
        digest.update(f"edge {relation.model_dump_json()} {num_edges} {sums}\n".encode())
    return digest.hexdigest()


def _edge_sums(relation: Relation, reader: EdgeReader, hashes: Mapping[str, Hashes]) -> tuple[int, int, int]:
    """Count a relation's edges, and sum up what tells them, and what tells their properties, from others."""
    names = [*key_columns(relation), *(["weight"] if relation.weighted else [])]
    content = ", ".join([*key_columns(relation)[2:], *map(quote, relation.properties)])
    further = {"_mf_hash": f"md5_number_lower(row({content})::VARCHAR)"} if relation.properties else {}
    num_edges, total, property_total = 0, 0, 0
    for columns in reader.stream(relation, names, _BATCH_ROWS, further):
        num_edges += len(columns["src"])
        src, dst = hashes[relation.src][columns["src"]], hashes[relation.dst][columns["dst"]]
        mixed = _mix(src) + dst
        if "time" in columns:
            mixed = _mix(mixed) + columns["time"].view(np.uint64)
        if "weight" in columns:
            mixed = _mix(mixed) + columns["weight"].view(np.uint32)
        total += int(_mix(mixed).sum())
        if further:
            property_total += int(_mix(_mix(_mix(src) + dst) + columns["_mf_hash"]).sum())
    return num_edges, total & _MASK, property_total & _MASK


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
