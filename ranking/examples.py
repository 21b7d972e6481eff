"""Labelled ranking examples as columns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ranking.recent import RecentPins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_METADATA_KEY = b"multifacet.examples"
_RECENT = "recent_pin_ids"
COLUMNS: dict[str, np.dtype[Any]] = {
    "user_id": np.dtype(np.int64),
    "pin_id": np.dtype(np.int64),
    "advertiser_id": np.dtype(np.int64),
    "context": np.dtype(np.int32),
    "period": np.dtype(np.int32),
    "ctr_label": np.dtype(np.float32),
    "cvr_label": np.dtype(np.float32),
    "sampling_rate": np.dtype(np.float32),
    "negative_rate": np.dtype(np.float32),
}
ID_FEATURES: tuple[str, ...] = ("user", "pin", "advertiser")


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Columns of n exposures with their labels.

    Attributes:
        user_id: External user ids, int64 [n].
        pin_id: External pin ids, int64 [n].
        advertiser_id: External advertiser ids, int64 [n]; -1 where the pin has none.
        context: Context (a store in a week) of the exposure, int32 [n].
        period: Period (week) of the exposure, int32 [n].
        dense: Raw dense features, float32 [n, len(dense_names)].
        ctr_label: 1 where the user responded, else 0, float32 [n].
        cvr_label: Of a response, 1 where the user bought the pin again within the window, else 0; NaN where
            unknown (no response, or a window that is not over), float32 [n].
        sampling_rate: Expected number of times that this exposure was drawn: 1 for a positive, float32 [n].
        negative_rate: Expected number of times that this exposure would be drawn were it a negative; the odds
            of a model trained on these examples times this rate are the odds over all exposures, float32 [n].
        dense_names: Names of the dense features, in column order.
        metadata: How the examples were made; JSON-able.
        recent: The users' recent pins; None where they were not asked for.
    """

    user_id: NDArray[np.int64]
    pin_id: NDArray[np.int64]
    advertiser_id: NDArray[np.int64]
    context: NDArray[np.int32]
    period: NDArray[np.int32]
    dense: NDArray[np.float32]
    ctr_label: NDArray[np.float32]
    cvr_label: NDArray[np.float32]
    sampling_rate: NDArray[np.float32]
    negative_rate: NDArray[np.float32]
    dense_names: tuple[str, ...]
    metadata: Mapping[str, Any]
    recent: RecentPins | None = None

    def __post_init__(self) -> None:
        num_rows = len(self.user_id)
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.shape != (num_rows,) or column.dtype != dtype:
                raise ValueError(f"Examples.{name} is {column.dtype}{list(column.shape)}; expected {dtype}[{num_rows}]")
        expected = (num_rows, len(self.dense_names))
        if self.dense.shape != expected or self.dense.dtype != np.float32:
            raise ValueError(f"Examples.dense is {self.dense.dtype}{list(self.dense.shape)}; expected float32{list(expected)}")
        if self.recent is not None and len(self.recent) != num_rows:
            raise ValueError(f"Examples.recent has {len(self.recent)} rows; expected {num_rows}")

    def __len__(self) -> int:
        return len(self.user_id)

    def __repr__(self) -> str:
        positives = int(self.ctr_label.sum())
        conversions = int(np.nansum(self.cvr_label))
        return f"Examples({len(self)} rows, {positives} positives, {conversions} conversions)"

    def ids(self, feature: str) -> NDArray[np.int64]:
        """Return the external ids of one id feature.

        Args:
            feature: "user", "pin" or "advertiser".

        Returns:
            int64 [n].

        Raises:
            KeyError: For another feature.
        """
        if feature not in ID_FEATURES:
            raise KeyError(f"no id feature {feature!r}; there are {', '.join(ID_FEATURES)}")
        ids: NDArray[np.int64] = getattr(self, f"{feature}_id")
        return ids

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all columns, in order."""
        digest = hashlib.sha256(json.dumps([self.dense_names, len(self)]).encode())
        recent = () if self.recent is None else (self.recent.pin_ids, self.recent.num_recent)
        for column in (*(getattr(self, name) for name in COLUMNS), self.dense, *recent):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def take(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Examples:
        """Return chosen rows.

        Args:
            rows: Row numbers or a boolean mask of length n.

        Returns:
            The examples of those rows, in that order.
        """
        columns = {name: getattr(self, name)[rows] for name in (*COLUMNS, "dense")}
        recent = None if self.recent is None else self.recent.take(rows)
        return Examples(**columns, dense_names=self.dense_names, metadata=self.metadata, recent=recent)

    def save(self, path: Path) -> None:
        """Write one Parquet file; the dense features are columns of their own.

        Args:
            path: File to write.

        Raises:
            ValueError: If a dense feature's name is that of another column.
        """
        clashes = set(self.dense_names) & {*COLUMNS, _RECENT}
        if clashes:
            raise ValueError(f"dense features {sorted(clashes)} have the names of other columns; rename them")
        columns = {name: pa.array(getattr(self, name)) for name in COLUMNS}
        columns |= {
            name: pa.array(np.ascontiguousarray(self.dense[:, position])) for position, name in enumerate(self.dense_names)
        }
        description: dict[str, Any] = {"dense_names": list(self.dense_names), "metadata": dict(self.metadata)}
        if self.recent is not None:
            columns[_RECENT] = self.recent.to_arrow()
            description["num_recent_pins"] = self.recent.length
        table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(description, sort_keys=True).encode()})
        pq.write_table(table, path, compression="zstd")

    @staticmethod
    def load(path: Path) -> Examples:
        """Read what `save` wrote.

        Args:
            path: The Parquet file.

        Returns:
            The examples, equal to the saved ones.

        Raises:
            ValueError: If the file was not written by `Examples.save`.
        """
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        if _METADATA_KEY not in metadata:
            raise ValueError(f"{path} holds no ranking examples; write it with Examples.save")
        description = json.loads(metadata[_METADATA_KEY])
        names = tuple(description["dense_names"])
        columns = {name: column(table, name) for name in COLUMNS}
        dense = np.empty((table.num_rows, len(names)), dtype=np.float32)
        for position, name in enumerate(names):
            dense[:, position] = column(table, name)
        recent = None
        if "num_recent_pins" in description:
            recent = RecentPins.from_arrow(table[_RECENT], length=description["num_recent_pins"])
        return Examples(**columns, dense=dense, dense_names=names, metadata=description["metadata"], recent=recent)


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """Return one column of an Arrow table as a NumPy array.

    Args:
        table: The table.
        name: Column without nulls.

    Returns:
        Array [rows] of the column's type; writable, as torch wants it.
    """
    values: NDArray[Any] = table[name].combine_chunks().to_numpy(zero_copy_only=False)
    return np.require(values, requirements=("C", "W"))


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Join examples of the same dense features, in order.

    Args:
        parts: At least one.

    Returns:
        All rows; the metadata is the first part's.

    Raises:
        ValueError: If there are no parts or their dense features differ.
    """
    if not parts:
        raise ValueError("concatenate needs at least one Examples, got none")
    names = {part.dense_names for part in parts}
    if len(names) > 1:
        raise ValueError(f"parts have different dense features: {sorted(names)}")
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Examples)
        if field.name not in {"dense_names", "metadata", "recent"}
    }
    recents = [part.recent for part in parts if part.recent is not None]
    if len(recents) not in {0, len(parts)}:
        raise ValueError(f"{len(recents)} of {len(parts)} parts have recent pins; expected all or none")
    recent = RecentPins.concatenate(recents) if recents else None
    return Examples(**columns, dense_names=parts[0].dense_names, metadata=parts[0].metadata, recent=recent)
