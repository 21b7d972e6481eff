"""What can be reached from a node, layer by layer, and the shortest paths to it; edges are taken both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from multifacet.graphdb.nodes import num_idx
from multifacet.graphdb.schema import GraphSchema, Relation
from multifacet.graphdb.sql import GraphError

MAX_HOPS: Final = 6

Node = tuple[str, int]
#: Node type -> idx, int32, ascending.
Layer = Mapping[str, NDArray[np.int32]]
#: A relation, the way it is taken (out or in), and the FROM clause of its edges.
Step = tuple[Relation, str, str]
#: A step of a path: relation, the way it is taken, the node that it leads to.
PathStep = tuple[str, str, Node]


class Reach:
    """Breadth-first search in SQL: each hop is one query over all relations that join two types.

    Args:
        cursor: Where to ask.
        schema: The schema.
        steps: The steps out of a node type.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, schema: GraphSchema, steps: Callable[[str], Iterable[Step]]) -> None:
        self._cursor = cursor
        self._types = [node.name for node in schema.nodes]
        self._steps = {node.name: _by_far_type(steps(node.name)) for node in schema.nodes}

    def layers(self, start: Node, num_hops: int, *, until: Node | None = None) -> list[Layer]:
        """The nodes at each distance from `start`, from 0 on; ends early where `until` or nothing new is reached.

        Raises:
            GraphError: More hops than `MAX_HOPS`, or fewer than none.
        """
        if not 0 <= num_hops <= MAX_HOPS:
            msg = f"expected 0 to {MAX_HOPS} hops, got {num_hops}"
            raise GraphError(msg)
        seen = {name: np.zeros(num_idx(self._cursor, name), np.bool_) for name in self._types}
        seen[start[0]][start[1]] = True
        layers: list[Layer] = [{start[0]: np.array([start[1]], np.int32)}]
        while len(layers) <= num_hops and layers[-1] and not (until and _holds(layers[-1], until)):
            before = {name: known.copy() for name, known in seen.items()}
            for kind, idx in layers[-1].items():
                for far_type, steps in self._steps[kind].items():
                    near = (
                        f"(SELECT DISTINCT far AS idx FROM {union_of(steps)} AS edge SEMI JOIN _near ON _near.idx = edge.near)"
                    )
                    reached = self._ask(near, _near=idx)["idx"].to_numpy()
                    seen[far_type][reached] = True
            found = {name: np.flatnonzero(known & ~before[name]).astype(np.int32) for name, known in seen.items()}
            layers.append({name: idx for name, idx in found.items() if len(idx)})
        return layers if layers[-1] else layers[:-1]

    def paths(self, start: Node, end: Node, *, max_hops: int, limit: int) -> list[list[PathStep]]:
        """At most `limit` of the shortest paths from `start` to `end`, none if there is no path of `max_hops` hops."""
        layers = self.layers(start, max_hops, until=end)
        if not _holds(layers[-1], end):
            return []
        # Each part of a path, built from its end, leads on to at least one whole path: `limit` parts are enough.
        parts: list[tuple[Node, list[PathStep]]] = [(end, [])]
        for layer in reversed(layers[:-1]):
            before = self._before(layer, {node for node, _ in parts}, limit)
            parts = [(near, [(relation, way, node), *steps]) for node, steps in parts for near, relation, way in before[node]][
                :limit
            ]
        return [steps for _, steps in parts]

    def _before(self, layer: Layer, nodes: set[Node], limit: int) -> dict[Node, list[tuple[Node, str, str]]]:
        """The steps that lead from a layer to each of some nodes, at most `limit` of one relation to one node."""
        found: dict[Node, list[tuple[Node, str, str]]] = {node: [] for node in nodes}
        for kind, idx in layer.items():
            for far_type, steps in self._steps[kind].items():
                wanted = np.array(sorted(idx for name, idx in nodes if name == far_type), np.int32)
                if not len(wanted):
                    continue
                query = (
                    f"(SELECT DISTINCT step, near, far FROM {union_of(steps)} AS edge "
                    "SEMI JOIN _near ON _near.idx = edge.near SEMI JOIN _far ON _far.idx = edge.far) "
                    f"QUALIFY row_number() OVER (PARTITION BY step, far ORDER BY near) <= {int(limit)} ORDER BY step, far, near"
                )
                rows = self._ask(query, _near=idx, _far=wanted).to_pydict()
                for step, near, reached in zip(rows["step"], rows["near"], rows["far"], strict=True):
                    relation, way, _ = steps[step]
                    found[far_type, reached].append(((kind, near), relation.name, way))
        return found

    def _ask(self, rows: str, **idx: NDArray[np.int32]) -> pa.Table:
        for name, values in idx.items():
            self._cursor.register(name, pa.table({"idx": values}))
        try:
            return self._cursor.sql(f"FROM {rows}").to_arrow_table()
        finally:
            for name in idx:
                self._cursor.unregister(name)


def ends(relation: Relation, way: str) -> tuple[str, str, str]:
    """The column of the near end, that of the far end, and the far end's type."""
    return ("src", "dst", relation.dst) if way == "out" else ("dst", "src", relation.src)


def union_of(steps: Sequence[Step]) -> str:
    """A FROM clause of the edges of some steps: columns step (the position in `steps`), near, far."""
    parts = []
    for position, (relation, way, rows) in enumerate(steps):
        own, other, _ = ends(relation, way)
        parts.append(f"SELECT {position} AS step, {own} AS near, {other} AS far FROM {rows}")
    return f"({' UNION ALL '.join(parts)})"


def _by_far_type(steps: Iterable[Step]) -> dict[str, list[Step]]:
    grouped: dict[str, list[Step]] = {}
    for step in steps:
        grouped.setdefault(ends(*step[:2])[2], []).append(step)
    return grouped


def hops_table(layers: Sequence[Layer]) -> pa.Table:
    """How many nodes of each type are in each layer: columns hop, type, nodes."""
    rows = [{"hop": hop, "type": name, "nodes": len(layer[name])} for hop, layer in enumerate(layers) for name in sorted(layer)]
    return pa.Table.from_pylist(rows, pa.schema([("hop", pa.int64()), ("type", pa.string()), ("nodes", pa.int64())]))


def _holds(layer: Layer, node: Node) -> bool:
    return node[0] in layer and bool((layer[node[0]] == node[1]).any())
