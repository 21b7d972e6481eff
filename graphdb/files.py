"""Writing a window to files that other programs read: Parquet and safetensors."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from graphdb.view import GraphView


def write_parquet(view: GraphView, folder: Path) -> list[Path]:
    """Writes `nodes_<type>` (idx, id), and in CSC `indices_<relation>` and `indptr_<relation>`: in-edges, oldest first.

    Characters that a file's name should not hold are percent-encoded.

    Returns:
        The files.

    Raises:
        FileExistsError: There is a file in the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, num_nodes in view.num_nodes.items():
        nodes = pa.table({"idx": pa.array(range(num_nodes), pa.int32()), "id": view.node_ids(name)})
        written.append(_write(nodes, folder, f"nodes_{name}"))
    for relation in view.relations:
        columns = view.csc(relation.name)
        indices = {"src": pa.array(columns.row.numpy())}
        if columns.time is not None:
            indices["time"] = pa.array(columns.time.numpy()).cast(pa.timestamp("us"))
        if columns.weight is not None:
            indices["weight"] = pa.array(columns.weight.numpy())
        written.append(_write(pa.table(indices), folder, f"indices_{relation.name}"))
        written.append(_write(pa.table({"indptr": pa.array(columns.colptr.numpy())}), folder, f"indptr_{relation.name}"))
    return written


def write_safetensors(view: GraphView, path: Path) -> None:
    """Writes each relation's CSC as `<relation>.colptr`, `.row`, `.time` and `.weight`, and the view's fingerprint as metadata.

    Raises:
        FileExistsError: There is a file in the way.
    """
    _refuse_existing(path)
    tensors: dict[str, Tensor] = {}
    for relation in view.relations:
        columns = view.csc(relation.name)
        parts = {"colptr": columns.colptr, "row": columns.row, "time": columns.time, "weight": columns.weight}
        tensors |= {f"{relation.name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    save_file(tensors, path, metadata={"fingerprint": view.fingerprint})


def _write(table: pa.Table, folder: Path, name: str) -> Path:
    path = folder / f"{urllib.parse.quote(name, safe=' ')}.parquet"
    _refuse_existing(path)
    pq.write_table(table, path)
    return path


def _refuse_existing(path: Path) -> None:
    if path.exists():
        msg = f"{path} exists; remove it, or choose another place"
        raise FileExistsError(msg)
