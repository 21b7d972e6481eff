"""The rows of an index as an Arrow file: ids, vectors and where they come from, as LanceDB and Qdrant take them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from multifacet.artifacts import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FILE_NAME", "METADATA_KEY", "map_rows", "write_rows"]

FILE_NAME: Final = "rows.arrow"
METADATA_KEY: Final = b"multifacet"


def write_rows(
    path: Path, ids: pa.Array, rows: NDArray[np.int64], vectors: NDArray[np.float32], told: Mapping[str, Any]
) -> None:
    """Writes one uncompressed record batch: columns id, row (of the snapshot's table) and vector (a list of a fixed size).

    Args:
        path: the file.
        ids: external ids [N].
        rows: int64 [N].
        vectors: float32 [N, D], contiguous.
        told: what goes into the schema's metadata, as JSON.
    """
    listed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"id": ids, "row": rows, "vector": listed}).replace_schema_metadata(
        {METADATA_KEY: json.dumps(dict(told), sort_keys=True)}
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def map_rows(path: Path, num_rows: int, dim: int) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.float32]]:
    """Maps ids [N], rows int64 [N] and vectors float32 [N, D] into memory, read-only.

    Raises:
        ArtifactError: The file is not what `write_rows` writes, or of another size.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        columns = [table.column(name).combine_chunks() for name in ("id", "row", "vector")]
        rows = columns[1].to_numpy(zero_copy_only=True)
        vectors = columns[2].flatten().to_numpy(zero_copy_only=True).reshape(-1, dim)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not an Arrow file of an index's rows: {error}.") from error
    if len(table) != num_rows or vectors.shape != (num_rows, dim):
        raise ArtifactError(f"{path} holds {len(table)} rows {list(vectors.shape)}; the manifest says [{num_rows}, {dim}].")
    return columns[0], rows, vectors
