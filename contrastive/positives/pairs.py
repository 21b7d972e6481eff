"""Positives out of plain pairs of ids: data frames, Arrow, files, tuples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from multifacet.contrastive.positives.positives import Positives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from multifacet.contrastive.config import PositivesConfig
    from multifacet.training import PairIndex

__all__ = ["Pairs", "read_pairs"]

_COLUMNS: Final = ("user", "item")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Positives with the ids of their rows.

    Attributes:
        positives: what is learned from.
        query_ids: external id of each query's row.
        item_ids: external id of each item's row.
    """

    positives: Positives
    query_ids: pa.Array
    item_ids: pa.Array

    def ids(self, query_type: str, item_type: str) -> Mapping[str, pa.Array]:
        """Give the ids by node type, as a snapshot takes them."""
        return {query_type: self.query_ids, item_type: self.item_ids}

    def node_ids(self, config: PositivesConfig, node_type: str) -> pa.Array | None:
        """Give the ids of one node type of a configuration; None if it is neither the queries' nor the items'."""
        return self.ids(config.query_type, config.item_type).get(node_type)

    def fingerprint(self) -> str:
        """Give the sha256 (hex) of pairs, weights and ids."""
        positives = self.positives
        digest = hashlib.sha256(json.dumps([len(positives), positives.num_queries, positives.num_items]).encode())
        for column in (positives.queries, positives.items, positives.weights):
            digest.update(np.ascontiguousarray(column).data)
        for ids in (self.query_ids, self.item_ids):
            digest.update(json.dumps(ids.to_pylist()).encode())
        return digest.hexdigest()

    def known(self) -> PairIndex:
        """Index the items of each query."""
        return self.positives.index()


def read_pairs(source: Any, *, columns: Sequence[str] = _COLUMNS, weight: str | None = None) -> Pairs:
    """Read pairs of ids; a pair that stands there twice counts double.

    Args:
        source: a pandas or polars data frame, an Arrow table, or anything that gives one (PyCapsule); a Parquet or CSV file
            with a header; a file of tab-separated pairs without one (.tsv, .txt); a list, array or `torch.utils.data.Dataset`
            of (query, item).
        columns: names of the columns of queries and items.
        weight: column that says how often each pair stands there; None for once.

    Returns:
        The positives, rows in the order of their ids' first appearance.

    Raises:
        ValueError: if there are no pairs, a column is missing or has nulls, or a weight is negative or not finite.
        TypeError: if the source is nothing of this, or ids are neither integers nor strings.

    Example:
        >>> pairs = read_pairs([("ann", "tea"), ("bob", "tea"), ("ann", "tea")])
        >>> pairs.positives.weights.tolist(), pairs.query_ids.to_pylist()
        ([2.0, 1.0], ['ann', 'bob'])
    """
    if not isinstance(columns, list | tuple) or len(columns) != 2:
        raise ValueError(f"columns are {columns!r}; expected the names of the columns of queries and items")
    table = _read(source, columns)
    wanted = [*columns, *([weight] if weight is not None else [])]
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise ValueError(
            f"the pairs have no columns {missing}; they have {table.column_names}. Name them by columns=(query, item)"
        )
    if not table.num_rows:
        raise ValueError("there are no pairs")
    for name in wanted:
        if table[name].null_count:
            place = int(np.argmax(table[name].is_null().to_numpy()))
            raise ValueError(f"column {name!r} has {table[name].null_count} nulls, the first in row {place}: drop such rows")
    encoded = [_encode(table[name], name) for name in columns]
    (queries, query_ids), (items, item_ids) = encoded
    positives = Positives.from_pairs(
        queries,
        items,
        num_queries=len(query_ids),
        num_items=len(item_ids),
        weights=None if weight is None else table[weight].to_numpy(),
    )
    if not len(positives):
        raise ValueError("all pairs have weight zero")
    return Pairs(positives=positives, query_ids=query_ids, item_ids=item_ids)


def _read(source: Any, columns: Sequence[str]) -> pa.Table:
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"there is no file of pairs {path}")
        try:
            if path.suffix in {".tsv", ".txt"}:
                options = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
                return pyarrow.csv.read_csv(
                    path, read_options=pyarrow.csv.ReadOptions(column_names=list(columns)), parse_options=options
                )
            return pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Pairs without a header have the suffix .tsv or .txt") from error
    if hasattr(source, "__arrow_c_stream__") or isinstance(source, pa.Table):
        return pa.table(source)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")) or isinstance(source, Mapping):
        raise TypeError(
            f"pairs are a {type(source).__name__}; expected a data frame, an Arrow table, a file, a list or a Dataset of pairs"
        )
    rows = [_plain(source[number]) for number in range(len(source)) if not isinstance(source[number], str)]
    if len(rows) != len(source) or any(len(row) != 2 for row in rows):
        raise ValueError("pairs must be (query, item) each")
    try:
        return pa.table({name: pa.array([row[place] for row in rows]) for place, name in enumerate(columns)})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"ids must be all integers or all strings: {error}") from error


def _plain(row: Any) -> tuple[Any, ...]:
    """Take one pair, such as a Dataset of torch gives it."""
    if isinstance(row, tuple) and len(row) == 1:  # a TensorDataset of one tensor
        (row,) = row
    if not hasattr(row, "__len__"):
        return (row,)
    return tuple(value.item() if hasattr(value, "item") else value for value in row)


def _encode(column: pa.ChunkedArray, name: str) -> tuple[NDArray[np.int32], pa.Array]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    else:
        raise TypeError(f"column {name!r} is {kind}; ids are integers or strings")
    encoded = pc.dictionary_encode(column.combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary
