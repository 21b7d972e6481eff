"""Labelled ranking examples as columns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multifacet.ranking.examples.recent import IdLists, RecentPins
from multifacet.ranking.slots import RECENT_PINS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from multifacet.tables import IdMap

_METADATA_KEY = b"multifacet.examples"
_RECENT = "recent_pin_ids"
_EXTRA, _LISTED, _WEIGHT = "feature:", "features:", "weight"
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

    Ids are integers, or numbers of strings: a feature that `vocabularies` names holds positions of its strings there.

    Attributes:
        user_id: External user ids, int64 [n].
        pin_id: External pin ids, int64 [n].
        advertiser_id: External advertiser ids, int64 [n]; -1 where the pin has none, and "" of strings.
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
        extra: Further id features of one value, by name: int64 [n] each, -1 (of strings "") where there is none.
        lists: Further id features of several values, by name.
        vocabularies: Feature -> its strings; recent pins have those of "pin".
        weight: What each example counts for in the losses and metrics, above 0, float32 [n]; None for 1.
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
    extra: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    lists: Mapping[str, IdLists] = field(default_factory=dict)
    vocabularies: Mapping[str, pa.Array] = field(default_factory=dict)
    weight: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        num_rows = len(self.user_id)
        self._check_features(num_rows)
        self._check_weight(num_rows)
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.shape != (num_rows,) or column.dtype != dtype:
                raise ValueError(f"Examples.{name} is {column.dtype}{list(column.shape)}; expected {dtype}[{num_rows}]")
        expected = (num_rows, len(self.dense_names))
        if self.dense.shape != expected or self.dense.dtype != np.float32:
            raise ValueError(f"Examples.dense is {self.dense.dtype}{list(self.dense.shape)}; expected float32{list(expected)}")
        if self.recent is not None and len(self.recent) != num_rows:
            raise ValueError(f"Examples.recent has {len(self.recent)} rows; expected {num_rows}")

    def _check_features(self, num_rows: int) -> None:
        clashes = sorted(({*self.extra} & {*self.lists}) | (({*self.extra} | {*self.lists}) & {*ID_FEATURES, RECENT_PINS}))
        if clashes:
            raise ValueError(f"Examples.extra and lists name {clashes}, which is there already; each feature has one name")
        for name, numbers in self.extra.items():
            if numbers.shape != (num_rows,) or numbers.dtype != np.int64:
                raise ValueError(
                    f"Examples.extra[{name!r}] is {numbers.dtype}{list(numbers.shape)}; expected int64[{num_rows}]"
                )
        for name, values in self.lists.items():
            if len(values) != num_rows:
                raise ValueError(f"Examples.lists[{name!r}] has {len(values)} rows; expected {num_rows}")
        for name, words in self.vocabularies.items():
            numbers = self.numbers(name)
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(words):
                raise ValueError(
                    f"Examples.{name}: numbers reach from {numbers.min()} to {numbers.max()}, beyond {len(words)} strings"
                )

    def _check_weight(self, num_rows: int) -> None:
        if self.weight is not None:
            if self.weight.shape != (num_rows,) or self.weight.dtype != np.float32:
                raise ValueError(
                    f"Examples.weight is {self.weight.dtype}{list(self.weight.shape)}; expected float32[{num_rows}]"
                )
            if not ((self.weight > 0) & np.isfinite(self.weight)).all():
                raise ValueError("Examples.weight holds values that are not finite numbers above 0; leave such examples out")

    def __len__(self) -> int:
        return len(self.user_id)

    def __repr__(self) -> str:
        positives = int(self.ctr_label.sum())
        conversions = int(np.nansum(self.cvr_label))
        return f"Examples({len(self)} rows, {positives} positives, {conversions} conversions)"

    @property
    def id_features(self) -> tuple[str, ...]:
        """The features that have ids, those of several values last."""
        return (*ID_FEATURES, *self.extra, *self.lists)

    def numbers(self, feature: str) -> NDArray[np.int64]:
        """Return what stands in a feature's column, as integers: ids, or numbers of strings.

        Args:
            feature: One of `id_features`.

        Returns:
            int64 [n]; of a feature of several values all that there are, row after row.

        Raises:
            KeyError: For another feature.
        """
        if feature in ID_FEATURES:
            own: NDArray[np.int64] = getattr(self, f"{feature}_id")
            return own
        if feature in self.lists:
            return self.lists[feature].listed()
        if feature not in self.extra:
            raise KeyError(f"no id feature {feature!r}; the examples have {', '.join(self.id_features)}")
        return self.extra[feature]

    def ids(self, feature: str) -> Any:
        """Return the external ids of one id feature.

        Args:
            feature: One of `id_features`.

        Returns:
            int64 [n], or a pyarrow array of strings [n].

        Raises:
            KeyError: For another feature.
        """
        return self.words(feature, self.numbers(feature))

    def distinct_ids(self, feature: str) -> Any:
        """Return a feature's distinct external ids, ascending by number; of "pin" the recent ones too."""
        numbers = self.numbers(feature)
        if feature == "pin" and self.recent is not None:
            numbers = np.concatenate([numbers, self.recent.listed()])
        return self.words(feature, np.unique(numbers))

    def words(self, feature: str, numbers: NDArray[np.int64]) -> Any:
        """Turn numbers of a feature into external ids, of any shape."""
        words = self.vocabularies.get(feature)
        return numbers if words is None else words.take(pa.array(numbers.reshape(-1)))

    def rows(self, feature: str, id_map: IdMap, numbers: NDArray[np.int64] | None = None) -> NDArray[np.int32]:
        """Look a feature up.

        Args:
            feature: One of `id_features`.
            id_map: Where its ids are looked up.
            numbers: Numbers to look up in place of the feature's own, of any shape.

        Returns:
            int32 [as many as numbers, rows an id].

        Raises:
            ValueError: If the map is of the other type of id.
        """
        wanted = (self.numbers(feature) if numbers is None else numbers).reshape(-1)
        words = self.vocabularies.get(feature)
        if (words is None) != (id_map.id_type == "int64"):
            kind = "integers" if words is None else "strings"
            raise ValueError(f"the examples' ids of {feature!r} are {kind}, its id map is of {id_map.id_type}")
        if words is None:
            return id_map.rows(wanted).reshape(len(wanted), id_map.num_hashes)
        rows: NDArray[np.int32] = id_map.rows(words).reshape(len(words), id_map.num_hashes)[wanted]
        return rows

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all columns, in order."""
        digest = hashlib.sha256(json.dumps([self.dense_names, len(self)]).encode())
        recent = () if self.recent is None else (self.recent.pin_ids, self.recent.num_recent)
        for column in (*(getattr(self, name) for name in COLUMNS), self.dense, *recent):
            digest.update(np.ascontiguousarray(column).data)
        for name, column in sorted(self.extra.items()):
            digest.update(name.encode() + np.ascontiguousarray(column).data)
        for name, listed in sorted(self.lists.items()):
            digest.update(name.encode() + np.ascontiguousarray(listed.pin_ids).data + listed.num_recent.data)
        for name, words in sorted(self.vocabularies.items()):
            digest.update(json.dumps([name, words.to_pylist()]).encode())
        if self.weight is not None:
            digest.update(np.ascontiguousarray(self.weight).data)
        return digest.hexdigest()

    def take(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Examples:
        """Return chosen rows.

        Args:
            rows: Row numbers or a boolean mask of length n.

        Returns:
            The examples of those rows, in that order.
        """
        columns = {name: getattr(self, name)[rows] for name in (*COLUMNS, "dense")}
        return replace(
            self,
            **columns,
            recent=None if self.recent is None else self.recent.take(rows),
            extra={name: numbers[rows] for name, numbers in self.extra.items()},
            lists={name: values.take(rows) for name, values in self.lists.items()},
            weight=None if self.weight is None else self.weight[rows],
        )

    def save(self, path: Path) -> None:
        """Write one Parquet file; the dense features are columns of their own.

        Args:
            path: File to write.

        Raises:
            ValueError: If a dense feature's name is that of another column.
        """
        clashes = {
            name for name in self.dense_names if name in {*COLUMNS, _RECENT, _WEIGHT} or name.startswith((_EXTRA, _LISTED))
        }
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
        columns |= {f"{_EXTRA}{name}": pa.array(numbers) for name, numbers in self.extra.items()}
        columns |= {f"{_LISTED}{name}": values.to_arrow() for name, values in self.lists.items()}
        if self.weight is not None:
            columns[_WEIGHT] = pa.array(self.weight)
        # Younger than the rest: files without them are as they were.
        if self.lists:
            description["list_lengths"] = {name: values.length for name, values in self.lists.items()}
        if self.vocabularies:
            description["vocabularies"] = {name: words.to_pylist() for name, words in self.vocabularies.items()}
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
        lengths: dict[str, int] = description.get("list_lengths", {})
        return Examples(
            **columns,
            dense=dense,
            dense_names=names,
            metadata=description["metadata"],
            recent=recent,
            extra={name[len(_EXTRA) :]: column(table, name) for name in table.column_names if name.startswith(_EXTRA)},
            lists={name: IdLists.from_arrow(table[f"{_LISTED}{name}"], length=length) for name, length in lengths.items()},
            vocabularies={name: pa.array(words, pa.string()) for name, words in description.get("vocabularies", {}).items()},
            weight=column(table, _WEIGHT) if _WEIGHT in table.column_names else None,
        )


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
    first, num_parts = parts[0], len(parts)
    for name in ("recent", "weight"):
        present = sum(getattr(part, name) is not None for part in parts)
        if present not in {0, num_parts}:
            raise ValueError(f"{present} of {num_parts} parts have {name}; expected all or none")
    features = {(tuple(part.extra), tuple(part.lists), tuple(sorted(part.vocabularies))) for part in parts}
    if len(features) > 1:
        raise ValueError(f"parts have different features or types of ids: {sorted(features)}")
    words, moved = _join_vocabularies(parts)

    def join(name: str, numbers: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([part if name not in moved else moved[name][place][part] for place, part in enumerate(numbers)])

    def join_lists(name: str, lists: Sequence[IdLists]) -> IdLists:
        if name in moved:
            # What stands beyond a list's end means nothing, but must be a number.
            lists = [replace(part, pin_ids=moved[name][place][part.pin_ids]) for place, part in enumerate(lists)]
        return IdLists.concatenate(lists)

    features_of = {f"{name}_id": name for name in ID_FEATURES}
    columns = {name: join(features_of.get(name, ""), [getattr(part, name) for part in parts]) for name in (*COLUMNS, "dense")}
    return Examples(
        **columns,
        dense_names=first.dense_names,
        metadata=first.metadata,
        recent=None if first.recent is None else join_lists("pin", [part.recent for part in parts if part.recent is not None]),
        extra={name: join(name, [part.extra[name] for part in parts]) for name in first.extra},
        lists={name: join_lists(name, [part.lists[name] for part in parts]) for name in first.lists},
        vocabularies=words,
        weight=None if first.weight is None else np.concatenate([part.weight for part in parts if part.weight is not None]),
    )


def _join_vocabularies(parts: Sequence[Examples]) -> tuple[dict[str, pa.Array], dict[str, list[NDArray[np.int64]]]]:
    """Give each feature's strings of all parts, and the new number of each part's old ones."""
    words, moved = {}, {}
    for name in parts[0].vocabularies:
        encoded = (
            pa.chunked_array([part.vocabularies[name] for part in parts], pa.string()).combine_chunks().dictionary_encode()
        )
        bounds = np.cumsum([len(part.vocabularies[name]) for part in parts])[:-1]
        words[name] = encoded.dictionary
        moved[name] = np.split(encoded.indices.to_numpy().astype(np.int64), bounds)
    return words, moved
