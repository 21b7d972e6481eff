"""Triples out of PyG's HeteroData."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multifacet.kge.triples.triples import TripleSet

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


def triples_from_hetero_data(data: HeteroData) -> TripleSet:
    """Read the edges of a HeteroData.

    Args:
        data: edge_index of each edge type, int [2, E].

    Returns:
        The triples; a relation is named by its edge type's middle, or by all three parts where two types share that. An
        `edge_weight` says how often each edge stands there.

    Raises:
        ValueError: if an edge type has no edge_index, two edge types would get one name, a node type's number of nodes is not
            known, or an edge lies outside it.
    """
    middles = [relation for _, relation, _ in data.edge_types]
    names = [relation if middles.count(relation) == 1 else f"{src}/{relation}/{dst}" for src, relation, dst in data.edge_types]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"several edge types would be named {repeated[0]!r}: rename one of {list(data.edge_types)}")
    num_nodes = {}
    for node_type in data.node_types:
        count = data[node_type].num_nodes
        if count is None:
            raise ValueError(f"the number of {node_type!r} nodes is not known: set data[{node_type!r}].num_nodes")
        num_nodes[node_type] = int(count)
    columns, weights = [], []
    for edge_type in data.edge_types:
        if "edge_index" not in data[edge_type]:
            raise ValueError(f"edge type {edge_type} has no edge_index; an adj_t or edge_attr alone is not read")
        edge_index = data[edge_type].edge_index.cpu().numpy()
        weight = data[edge_type].get("edge_weight")
        if weight is not None and tuple(weight.shape) != edge_index.shape[1:]:
            raise ValueError(f"edge type {edge_type}: {edge_index.shape[1]} edges, but edge_weight is {list(weight.shape)}")
        repetitions = np.ones(edge_index.shape[1]) if weight is None else weight.cpu().numpy().astype(np.float64)
        stands = repetitions != 0  # an edge of weight zero is none
        columns.append(edge_index[:, stands].astype(np.int32))
        weights.append(repetitions[stands])
    is_weighted = any("edge_weight" in data[edge_type] for edge_type in data.edge_types)
    empty = np.empty((2, 0), dtype=np.int32)
    heads, tails = np.concatenate([empty, *columns], axis=1)
    return TripleSet(
        heads=heads,
        relations=np.repeat(np.arange(len(names), dtype=np.int32), [edges.shape[1] for edges in columns]),
        tails=tails,
        relation_names=tuple(names),
        ends={name: (src, dst) for name, (src, _, dst) in zip(names, data.edge_types, strict=True)},
        num_nodes=num_nodes,
        weights=np.concatenate(weights) if is_weighted else None,
    )
