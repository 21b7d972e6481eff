"""External ids to table rows: exact (one row an id) or hashed (the paper's, where ids may collide)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from multifacet.inputs import whole
from multifacet.kernels.hashing import hash_rows, seed_stream
from multifacet.kernels.threads import run_ranges
from multifacet.tables.ids.collisions import CollisionReport
from multifacet.tables.ids.column import IdColumn, Ids, IdType, to_arrow
from multifacet.tables.ids.index import IdIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_ROWS: Final = (1 << 31) - 1
_MIN_IDS_PER_THREAD: Final = 1 << 14
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class _Document(BaseModel):
    """What ``<name>.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["multifacet-idmap"] = "multifacet-idmap"
    version: Literal[1] = 1
    kind: Literal["exact", "hashed"]
    id_type: IdType
    num_rows: int
    num_hashes: int
    seed: int


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
        self._seeds = seed_stream(seed, num_hashes if index is None else 0)

    def __repr__(self) -> str:
        hashes = "" if self._index is not None else f", num_hashes={self.num_hashes}"
        return f"{type(self).__name__}({self.kind}, id_type={self.id_type}, num_rows={self.num_rows}{hashes})"

    @property
    def kind(self) -> Literal["exact", "hashed"]:
        """Which of the two maps this is."""
        return "hashed" if self._index is None else "exact"

    @property
    def index(self) -> IdIndex | None:
        """An exact map's arrays, for kernels that look ids up themselves; None for a hashed map."""
        return self._index

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
        for name, value in (("num_rows", num_rows), ("num_hashes", num_hashes), ("seed", seed)):
            whole()(name, value)
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
        return self.rows_of(IdColumn.of(ids, self.id_type))

    def rows_of(self, column: IdColumn) -> NDArray[np.int32]:
        """Looks up a column that is already in the kernels' layout; as `rows`."""
        if self._index is not None:
            return self._index.lookup(column, self.num_rows - 1)
        rows = np.empty((len(column), self.num_hashes), np.int32)
        run_ranges(
            lambda start, stop: hash_rows(column.keys, self._seeds, self.num_rows, rows, start, stop),
            len(column),
            min_size=_MIN_IDS_PER_THREAD,
        )
        return rows[:, 0] if self.num_hashes == 1 else rows

    def find(self, ids: NDArray[np.int64], rows: NDArray[np.int32]) -> int:
        """Looks int64 ids up on this thread, into memory that is there: for a server's many small requests.

        Args:
            ids: int64 [n], contiguous and read-only.
            rows: int32 [n], written.

        Returns:
            How many of them got the out-of-vocabulary row; 0 for a hashed map.

        Raises:
            TypeError: The map is one of strings.
            ValueError: The map has several rows an id.

        Example:
            >>> rows = np.empty(2, np.int32)
            >>> IdMap.exact([30, 10, 20]).find(np.frombuffer(np.array([20, 99]).tobytes(), np.int64), rows), rows.tolist()
            (1, [2, 3])
        """
        if self.id_type != "int64":
            raise TypeError(f"find takes int64 ids, and {self!r} maps strings; use rows.")
        if self._index is not None:
            return self._index.find(ids, self.num_rows - 1, rows)
        if self.num_hashes != 1:
            raise ValueError(f"find gives one row an id, and {self!r} has {self.num_hashes}; use rows.")
        hash_rows(ids, self._seeds, self.num_rows, rows.reshape(-1, 1), 0, len(ids))
        return 0

    def known_ids(self, places: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.object_]:
        """Gives some of the ids that an exact map knows: a sample for a load or a check.

        Args:
            places: int64 [n], each from 0 to num_rows - 2: places in the map's own order, which is not the rows'.

        Returns:
            int64 [n], or object [n] of str.

        Raises:
            ValueError: The map is hashed, and knows no ids.
        """
        if self._index is None:
            raise ValueError(f"{self!r} keeps no ids.")
        return self._index.ids(places)

    def collision_report(self, ids: Ids) -> CollisionReport:
        """Counts which of the given ids share rows.

        Args:
            ids: As for `rows`; an id that occurs twice counts once.
        """
        distinct = IdColumn.of(pc.unique(to_arrow(ids, self.id_type)), self.id_type)
        rows = self.rows_of(distinct).reshape(len(distinct), self.num_hashes)
        return CollisionReport.of(rows, num_rows=self.num_rows, oov_row=self.oov_row)

    def save(self, directory: str | Path, name: str) -> None:
        """Writes ``<name>.json`` and, for an exact map, ``<name>.safetensors``; equal maps give equal bytes.

        Args:
            directory: An existing directory, such as one of an `ArtifactWriter`.
            name: The files' name without a suffix.
        """
        _check_name(name)
        document = _Document(
            kind=self.kind,
            id_type=self.id_type,
            num_rows=self.num_rows,
            num_hashes=self.num_hashes,
            seed=self.seed,
        )
        if self._index is not None:
            self._index.save(Path(directory) / f"{name}.safetensors")
        (Path(directory) / f"{name}.json").write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")

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
        try:
            document = _Document.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is not an id map that this version of multifacet reads: {error}") from error
        index = None
        if document.kind == "exact":
            index = IdIndex.load(path.with_name(f"{name}.safetensors"), document.id_type)
            if len(index) != document.num_rows - 1:
                raise ValueError(f"{path} has {document.num_rows} rows, its index {len(index)} ids; they do not match.")
        return cls(
            document.id_type,
            document.num_rows,
            num_hashes=document.num_hashes,
            seed=document.seed,
            index=index,
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"The name {name!r} is refused; use letters, digits, '_', '-' and '.' only.")
