"""Writing a window to files that other programs read: Parquet and safetensors."""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import Tensor

from multifacet.graphdb.merging import column_pointers
from multifacet.graphdb.properties import property_tensor, tensor_properties

if TYPE_CHECKING:
    from multifacet.graphdb.view import GraphView

logger = logging.getLogger(__name__)


def write_parquet(view: GraphView, folder: Path) -> list[Path]:
    """Writes `nodes_<type>`, and in CSC `indices_<relation>` and `indptr_<relation>`: in-edges, oldest first.

    Nodes have their idx, id and properties; edges their src, time, weight and properties, all as they are stored.

    Characters that a file's name should not hold are percent-encoded.

    Returns:
        The files.

    Raises:
        FileExistsError: There is a file in the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(node_table(view, name), folder, f"nodes_{name}") for name in view.num_nodes]
    for relation in view.relations:
        edges = edge_table(view, relation.name)
        pointers = column_pointers(edges["dst"].to_numpy(), view.num_nodes[relation.dst])
        written.append(_write(edges.drop_columns("dst"), folder, f"indices_{relation.name}"))
        written.append(_write(pa.table({"indptr": pa.array(pointers)}), folder, f"indptr_{relation.name}"))
    return written


def node_table(view: GraphView, node_type: str) -> pa.Table:
    """The nodes of a type: columns idx (the row that edges name), id, and their properties as they are stored."""
    table = pa.table({"idx": pa.array(np.arange(view.num_nodes[node_type], dtype=np.int32)), "id": view.node_ids(node_type)})
    properties = view.node_properties(node_type) if view.schema.node(node_type).properties else None
    return table if properties is None else _beside(table, properties)


def edge_table(view: GraphView, relation: str) -> pa.Table:
    """The edges of a relation in the order of `GraphView.edges`: columns src, dst, time, weight, and their properties."""
    edges = view.edges(relation)
    columns = {"src": pa.array(edges.src.numpy()), "dst": pa.array(edges.dst.numpy())}
    if edges.time is not None:
        columns["time"] = pa.array(edges.time.numpy()).cast(pa.timestamp("us"))
    if edges.weight is not None:
        columns["weight"] = pa.array(edges.weight.numpy())
    table = pa.table(columns)
    return _beside(table, view.edge_properties(relation)) if view.schema.relation(relation).properties else table


def write_safetensors(view: GraphView, path: Path) -> None:
    """Writes a window's tensors, and its fingerprint as metadata.

    Each relation's CSC is `<relation>.colptr`, `.row`, `.time` and `.weight`; its edges' properties are
    `<relation>.property.<name>` and those of nodes `node.<type>.property.<name>`, as `property_tensor` gives them. In names,
    "%" and "." are percent-encoded. Text is left out, which is logged.

    Raises:
        FileExistsError: There is a file in the way.
        GraphError: A property whose values no tensor holds exactly.
    """
    _refuse_existing(path)
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []

    def add(prefix: str, owner: str, declared: Mapping[str, str], table: pa.Table) -> None:
        kept = tensor_properties(declared)
        left_out.extend(f"{prefix}.property.{name}" for name in declared if name not in kept)
        for name in kept:
            where = f"property {name!r} of {owner}"
            tensors[f"{prefix}.property.{_encoded(name)}"] = property_tensor(table[name], declared[name], where=where)

    for name in view.num_nodes:
        declared = view.schema.node(name).properties
        if declared:
            add(f"node.{_encoded(name)}", f"node type {name!r}", declared, view.node_properties(name))
    for relation in view.relations:
        columns = view.csc(relation.name)
        parts = {"colptr": columns.colptr, "row": columns.row, "time": columns.time, "weight": columns.weight}
        prefix = _encoded(relation.name)
        tensors |= {f"{prefix}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
        if relation.properties:
            add(prefix, f"relation {relation.name!r}", relation.properties, view.edge_properties(relation.name))
    if left_out:
        logger.warning("%s holds no text: %s are left out; Parquet has them", path, ", ".join(left_out))
    # One entry alone: safetensors would write several in any order, and equal windows give equal files.
    save_file(tensors, path, metadata={"fingerprint": view.fingerprint})


def _beside(table: pa.Table, properties: pa.Table) -> pa.Table:
    for name in properties.column_names:
        table = table.append_column(name, properties[name])
    return table


def _encoded(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E")


def _write(table: pa.Table, folder: Path, name: str) -> Path:
    path = folder / f"{urllib.parse.quote(name, safe=' ')}.parquet"
    _refuse_existing(path)
    pq.write_table(table, path)
    return path


def _refuse_existing(path: Path) -> None:
    if path.exists():
        msg = f"{path} exists; remove it, or choose another place"
        raise FileExistsError(msg)
