"""External ids by idx."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from multifacet.graphdb.sql import count, run
from multifacet.graphdb.storage.layout import node_table
from multifacet.inputs import as_one_array

_MAX_CACHED_NODES = 5_000_000


class IdCache:
    """External ids by idx, as text; a node type's are read once and kept: a join costs more than finding the neighbours."""

    def __init__(self) -> None:
        self._ids: dict[str, pa.Array] = {}

    def clear(self) -> None:
        """Forgets all; to be called when the store has changed."""
        self._ids.clear()

    def take(self, cursor: duckdb.DuckDBPyConnection, node: str, idx: Sequence[int]) -> list[str]:
        """The ids of some idx."""
        if node not in self._ids:
            if count(cursor, node_table(node)) > _MAX_CACHED_NODES:
                wanted = ", ".join(map(str, idx)) or "-1"
                found = dict(run(cursor, f"SELECT idx, CAST(id AS VARCHAR) FROM {node_table(node)} WHERE idx IN ({wanted})"))
                return [found[one] for one in idx]
            self._ids[node] = _ids(cursor, node)
        return [str(one) for one in self._ids[node].take(pa.array(idx, pa.int64())).to_pylist()]


def _ids(cursor: duckdb.DuckDBPyConnection, node: str) -> pa.Array:
    nodes = cursor.sql(f"SELECT idx, id FROM {node_table(node)} ORDER BY idx").to_arrow_table()
    idx = nodes["idx"].to_numpy()
    ids = as_one_array(nodes["id"])
    if len(idx) == 0 or idx[-1] == len(idx) - 1:
        return ids
    positions = np.full(idx[-1] + 1, -1)
    positions[idx] = np.arange(len(idx))
    return ids.take(pa.array(positions, mask=positions < 0))
