"""External ids to table rows: exact (one row an id) or hashed (the paper's, where ids may collide)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import numpy as np
import pyarrow.compute as pc
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tables.hashing import hash_rows, seed_stream
from tables.idcolumn import IdColumn, Ids, IdType, to_arrow
from tables.idindex import IdIndex
from tables.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMAT: Final = "multifacet-idmap"
_VERSION: Final = 1
_MAX_ROWS: Final = (1 << 31) - 1
_MIN_IDS_PER_THREAD: Final = 1 << 14
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollisionReport:
    """How many ids of a list share their place in a table.

    Attributes:
        num_ids: Distinct ids in the list.
        num_rows: The table's rows.
        rows_used: Rows that at least one of the ids reads.
        colliding_ids: Ids whose rows (all of them, when several hashes are used) are also another id's.
        collision_rate: colliding_ids / num_ids.
        expected_collision_rate: The same under a uniform random hash; 0 for an exact map.
        max_ids_per_row: The ids that read the fullest row.
        oov_ids: Ids that an exact map does not know; they all read its out-of-vocabulary row.
    """

    num_ids: int
    num_rows: int
    rows_used: int
    colliding_ids: int
    collision_rate: float
    expected_collision_rate: float
    max_ids_per_row: int
    oov_ids: int


class IdMap:
    """Maps external ids to rows of an embedding table; the same in training and serving, in every process.

    Build one with `IdMap.exact` or `IdMap.hashed`.

    Attributes:
        id_type: "int64" or "string".
        num_rows: The table's rows, the out-of-vocabulary row included.
        oov_row: The row of ids that an exact map does not know (its last one); None for a hashed map, where every
            id has its rows.
        num_hashes: Rows an id: 1 for an exact map.
        seed: Where a hashed map's hash functions start; 0 for an exact map.

    Example:
        >>> users = IdMap.exact([30, 10, 20])
        >>> users.rows([10, 99]).tolist(), users.num_rows, users.oov_row
        ([1, 3], 4, 3)
    """

    def __init__(
        self, id_type: IdType, num_rows: int, *, num_hashes: int = 1, seed: int = 0, index: IdIndex | None = None
    ) -> None:
        if id_type not in get_args(IdType):
            raise ValueError(f"id_type is {id_type!r}; expected one of {', '.join(get_args(IdType))}.")
        if not 1 <= num_rows <= _MAX_ROWS:
            raise ValueError(f"num_rows is {num_rows}; expected 1 to {_MAX_ROWS} (rows are int32).")
        if num_hashes < 1:
            raise ValueError(f"num_hashes is {num_hashes}; expected at least 1.")
        self.id_type: IdType = id_type
        self.num_rows: int = num_rows
        self.num_hashes: int = num_hashes
        self.seed: int = seed
        self.oov_row: int | None = None if index is None else num_rows - 1
        self._index = index
        self._seeds = seed_stream(seed, num_hashes)

    def __repr__(self) -> str:
        rows = f"{self.kind}, id_type={self.id_type}, num_rows={self.num_rows}"
        return (
            f"{type(self).__name__}({rows})" if self._index else f"{type(self).__name__}({rows}, num_hashes={self.num_hashes})"
        )

    @property
    def kind(self) -> Literal["exact", "hashed"]:
        """Which of the two maps this is."""
        return "hashed" if self._index is None else "exact"

    @classmethod
    def exact(cls, ids: Ids) -> Self:
        """Gives position i row i, and one more row to every other id.

        Args:
            ids: int64 or string [n], distinct and without nulls.

        Raises:
            ValueError: An id occurs twice, is null, or there are too many for int32 rows.
            TypeError: The ids are neither int64 nor strings.
        """
        column = IdColumn.of(ids)
        if len(column) >= _MAX_ROWS:
            raise ValueError(f"There are {len(column)} ids; int32 rows hold {_MAX_ROWS - 1}. Use IdMap.hashed.")
        return cls(column.id_type, len(column) + 1, index=IdIndex.build(column))

    @classmethod
    def hashed(cls, num_rows: int, *, id_type: IdType, num_hashes: int = 1, seed: int = 0) -> Self:
        """Hashes every id to `num_hashes` rows; distinct ids may share them.

        Args:
            num_rows: The table's rows.
            id_type: "int64" or "string".
            num_hashes: Rows an id; a model sums or concatenates their vectors.
            seed: Chooses the hash functions.
        """
        return cls(id_type, num_rows, num_hashes=num_hashes, seed=seed)

    def rows(self, ids: Ids) -> NDArray[np.int32]:
        """Looks ids up.

        Args:
            ids: [n] of this map's `id_type`, without nulls: a pyarrow array, NumPy array, tensor or list.

        Returns:
            int32 [n], or [n, num_hashes] if there are several hashes.

        Raises:
            TypeError: The ids are not of this map's type.
            ValueError: There is a null.
        """
        return self._rows(IdColumn.of(ids, self.id_type))

    def _rows(self, column: IdColumn) -> NDArray[np.int32]:
        if self._index is not None:
            return self._index.lookup(column, self.num_rows - 1)
        rows = np.empty((len(column), self.num_hashes), np.int32)
        run_ranges(
            lambda start, stop: hash_rows(column.keys, self._seeds, self.num_rows, rows, start, stop),
            len(column),
            min_size=_MIN_IDS_PER_THREAD,
        )
        return rows[:, 0] if self.num_hashes == 1 else rows

    def collision_report(self, ids: Ids) -> CollisionReport:
        """Counts which of the given ids share rows.

        Args:
            ids: As for `rows`; an id that occurs twice counts once.
        """
        distinct = IdColumn.of(pc.unique(to_arrow(ids)), self.id_type)
        rows = self._rows(distinct).reshape(len(distinct), self.num_hashes)
        _, sharing = np.unique(rows, axis=0, return_counts=True)
        # An id with two equal rows reads that row once.
        _, loads = np.unique(_distinct_in_row(rows), return_counts=True)
        num_ids, places = len(distinct), float(self.num_rows) ** self.num_hashes
        colliding = int(sharing[sharing > 1].sum())
        expected = (
            0.0
            if self._index is not None
            else -math.expm1((num_ids - 1) * math.log1p(-1 / places))
            if places > 1
            else float(num_ids > 1)
        )
        return CollisionReport(
            num_ids=num_ids,
            num_rows=self.num_rows,
            rows_used=len(loads),
            colliding_ids=colliding,
            collision_rate=colliding / num_ids if num_ids else 0.0,
            expected_collision_rate=expected if num_ids else 0.0,
            max_ids_per_row=int(loads.max(initial=0)),
            oov_ids=int((rows == self.oov_row).sum()) if self.oov_row is not None else 0,
        )

    def save(self, directory: str | Path, name: str) -> None:
        """Writes ``<name>.json`` and, for an exact map, ``<name>.safetensors``; equal maps give equal bytes.

        Args:
            directory: An existing directory, such as one of an `ArtifactWriter`.
            name: The files' name without a suffix.
        """
        _check_name(name)
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": self.kind,
            "id_type": self.id_type,
            "num_rows": self.num_rows,
            "num_hashes": self.num_hashes,
            "seed": self.seed,
        }
        if self._index is not None:
            tensors = {key: torch.from_numpy(np.array(array)) for key, array in self._index.arrays.items()}
            save_file(tensors, Path(directory) / f"{name}.safetensors")
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        (Path(directory) / f"{name}.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, name: str) -> Self:
        """Opens a saved map; an exact map's arrays stay in the file and are mapped into memory.

        Args:
            directory: Where `save` wrote it.
            name: The name given to `save`.

        Raises:
            FileNotFoundError: There is no such map.
            ValueError: The file is not an id map that this version reads.
        """
        _check_name(name)
        path = Path(directory) / f"{name}.json"
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document.get("format") != _FORMAT or document.get("version") != _VERSION:
            raise ValueError(
                f"{path} is {document.get('format')!r} version {document.get('version')!r}; "
                f"expected {_FORMAT!r} version {_VERSION}."
            )
        index = None
        if document["kind"] == "exact":
            with safe_open(path.with_name(f"{name}.safetensors"), framework="pt") as stored:
                index = IdIndex({key: stored.get_tensor(key).numpy() for key in stored.keys()})  # noqa: SIM118
            if len(index) != document["num_rows"] - 1:
                raise ValueError(f"{path} has {document['num_rows']} rows, its index {len(index)} ids; they do not match.")
        return cls(
            document["id_type"],
            document["num_rows"],
            num_hashes=document["num_hashes"],
            seed=document["seed"],
            index=index,
        )


def _distinct_in_row(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    ordered = np.sort(rows, axis=1)
    keep = np.ones(ordered.shape, dtype=bool)
    keep[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return ordered[keep]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"The name {name!r} is refused; use letters, digits, '_', '-' and '.' only.")
