"""One table of a snapshot: what is written of it, and how."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from multifacet.tables.codec.rows import check_encodable
from multifacet.tables.ids.column import IdColumn, to_arrow
from multifacet.tables.ids.index import IdIndex

if TYPE_CHECKING:
    from pathlib import Path

SnapshotPrecision = Literal["fp32", "fp16"]

_DTYPES: Final[dict[str, torch.dtype]] = {"fp32": torch.float32, "fp16": torch.float16}
_BLOCK_ROWS: Final = 1 << 16
_NODE_TYPE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SnapshotTable:
    """One node type's part of a snapshot.

    Attributes:
        ids: External ids, int64 or string [rows]; position i is idx i of the graph.
        vectors: float32 [rows, dim]; row i belongs to ids[i].
        optimizer: What a later training of these rows needs beside them, float32 [rows] each; None to keep nothing.
        trained: Which rows a gradient has reached, bool [rows]; None for all. What another row holds is a first value, which
            tells nothing of its id.
    """

    ids: pa.Array
    vectors: Tensor
    optimizer: OptimizerRows | None = None
    trained: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OptimizerRows:
    """What row-wise Adagrad knows of each row: 8 bytes a row, which a warm start needs to keep old rows in their place.

    Attributes:
        adagrad: Accumulated mean squares of the gradients, float32 [rows]; 0 where no gradient has ever been.
        lengths: What to multiply a row by to get it as it was trained, float32 [rows]: 1, or its length if the snapshot
            holds rows of length 1.
    """

    adagrad: Tensor
    lengths: Tensor


def check_table(name: str, table: SnapshotTable, precision: SnapshotPrecision) -> None:
    """Refuse a table that a snapshot cannot hold.

    Raises:
        ValueError: Its node type, ids, vectors, optimiser state or marks do not fit, or the precision cannot hold the vectors.
    """
    if not _NODE_TYPE.fullmatch(name):
        raise ValueError(f"The node type {name!r} is refused; use letters, digits, '_', '-' and '.' only.")
    try:
        _check_rows(table, precision)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Table {name}: {error}") from error


def _check_rows(table: SnapshotTable, precision: SnapshotPrecision) -> None:
    ids, vectors, optimizer, trained = table.ids, table.vectors, table.optimizer, table.trained
    check_encodable(vectors, precision)
    if len(ids) != len(vectors):
        raise ValueError(f"{len(ids)} ids and {len(vectors)} vectors; they must match row by row.")
    if optimizer is not None:
        for name, values in (("adagrad", optimizer.adagrad), ("lengths", optimizer.lengths)):
            if values.shape != (len(ids),) or values.dtype != torch.float32:
                raise ValueError(f"{name} is {values.dtype} {list(values.shape)}; expected torch.float32 [{len(ids)}].")
    if trained is not None and (trained.shape != (len(ids),) or trained.dtype != torch.bool):
        raise ValueError(f"trained is {trained.dtype} {list(trained.shape)}; expected torch.bool [{len(ids)}].")
    IdIndex.build(IdColumn.of(ids))  # refuses nulls and duplicates


def write_table(directory: Path, name: str, table: SnapshotTable, precision: SnapshotPrecision) -> dict[str, Any]:
    """Write a table's files below a snapshot's folder, and give its entry in the manifest."""
    vectors_file, ids_file = f"vectors/{name}.safetensors", f"ids/{name}.parquet"
    vectors = table.vectors.detach()
    ids = to_arrow(table.ids)
    _write_vectors(directory / vectors_file, vectors, _DTYPES[precision])
    columns = {"id": ids}
    optional: dict[str, Any] = {}
    if table.trained is not None and not bool(table.trained.all()):
        columns["trained"] = pa.array(table.trained.numpy())
        optional["untrained"] = len(ids) - int(table.trained.sum())
    pq.write_table(pa.table(columns), directory / ids_file, compression="zstd")
    if table.optimizer is not None:
        optional["optimizer"] = f"optimizer/{name}.safetensors"
        rows = {"adagrad": table.optimizer.adagrad.contiguous(), "lengths": table.optimizer.lengths.contiguous()}
        save_file(rows, directory / optional["optimizer"])
    return {
        **optional,
        "rows": vectors.shape[0],
        "dim": vectors.shape[1],
        "precision": precision,
        "id_type": IdColumn.of(ids[:0]).id_type,
        "vectors": vectors_file,
        "ids": ids_file,
    }


def _write_vectors(path: Path, vectors: Tensor, dtype: torch.dtype) -> None:
    """Writes a safetensors file of one tensor block by block: the table may be larger than memory."""
    code, itemsize = {torch.float32: ("F32", 4), torch.float16: ("F16", 2)}[dtype]
    entry = {"dtype": code, "shape": list(vectors.shape), "data_offsets": [0, vectors.numel() * itemsize]}
    header = json.dumps({"vectors": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data begins at a multiple of 8 bytes
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for begin in range(0, len(vectors), _BLOCK_ROWS):
            file.write(vectors[begin : begin + _BLOCK_ROWS].to(dtype).contiguous().numpy().data)
