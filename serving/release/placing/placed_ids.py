"""An exact map of int64 ids whose rows stand where the ids say, each with its id before it.

On disk it is ``<name>.json`` and ``<name>.safetensors`` with the arrays of `serving.release.placing.perfect_hash`. The ids
themselves are in the file of a table: see `serving.release.manifest.ReleaseTable.slot_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from safetensors.numpy import save_file

from multifacet.artifacts import map_tensors
from multifacet.serving.release.manifest import KEY_BYTES
from multifacet.serving.release.placing.perfect_hash import PerfectHash, find_placed, num_buckets, num_spare
from multifacet.tables.ids import IdColumn

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from multifacet.tables.ids import Ids, IdType

_LINE_BYTES: Final = 64


class _Document(BaseModel):
    """What ``<name>.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["multifacet-placed-ids"] = "multifacet-placed-ids"
    version: Literal[1] = 1
    num_rows: PositiveInt
    seed: NonNegativeInt


class PlacedIds:
    """Finds the rows of ids by one look at the row itself.

    An id is compared with the one that stands at its place: one that is not there never gets a row but the last.

    Args:
        places: Where ids stand.
        keys: int64 [n], the id of each row but the last; a view of the table's memory, in steps of `keys.strides`.

    Attributes:
        id_type: int64.
        num_rows: Rows of the table, the out-of-vocabulary row included.
        oov_row: That row, the last one.
        index: The map itself: it is one that knows its ids.
        numbering: Pilots, moved, number of ids and offset, as `find_placed` takes them.

    Example:
        >>> ids = np.array([30, 10, 20])
        >>> places = PerfectHash.build(ids)
        >>> keys = np.empty(3, np.int64)
        >>> keys[places.numbers(ids)] = ids
        >>> placed = PlacedIds(places, keys)
        >>> bool((placed.rows([30, 10, 20]) == places.numbers(ids)).all()), placed.rows([40]).tolist()
        (True, [3])
    """

    id_type: Final[IdType] = "int64"
    num_hashes: Final = 1
    seed: Final = 0

    def __init__(self, places: PerfectHash, keys: npt.NDArray[np.int64]):
        if keys.shape != (places.num_ids,) or keys.dtype != np.int64 or (len(keys) and keys.strides[0] < KEY_BYTES):
            raise ValueError(f"keys are {keys.dtype} {keys.shape}: expected int64 [{places.num_ids}], one a row")
        self.places = places
        self.keys = keys
        self.num_rows = places.num_ids + 1
        self.oov_row = places.num_ids
        # What kernels take, made once: it would cost a small lookup as much as its rows do.
        self.numbering = places.pilots, places.moved, places.num_ids, places.offset
        self._keys_at = np.uintp(keys.ctypes.data), np.uintp(keys.strides[0] if len(keys) else KEY_BYTES)

    def __repr__(self) -> str:
        return f"PlacedIds(num_rows={self.num_rows})"

    @property
    def index(self) -> PlacedIds:
        """The map itself."""
        return self

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a lookup reads beside the table."""
        return {"pilots": self.places.pilots, "moved": self.places.moved}

    def rows(self, ids: Ids) -> npt.NDArray[np.int32]:
        """As `IdMap.rows`."""
        return self.lookup(IdColumn.of(ids, self.id_type), self.oov_row)

    def lookup(self, ids: IdColumn, missing: int) -> npt.NDArray[np.int32]:
        """As `IdIndex.lookup`."""
        rows = np.empty(len(ids), np.int32)
        self._find(ids.keys, missing, rows)
        return rows

    def find(self, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> int:
        """As `IdMap.find`."""
        return self._find(ids, self.oov_row, rows)

    def known_ids(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """As `IdMap.known_ids`; the map's own order is that of the rows."""
        known: npt.NDArray[np.int64] = self.keys[places]
        return known

    @classmethod
    def load(cls, directory: Path, name: str, keys: npt.NDArray[np.int64]) -> PlacedIds:
        """Open a saved map.

        Args:
            directory: Where it was saved.
            name: Its name.
            keys: As the class takes them.

        Raises:
            FileNotFoundError: There is no such map.
            ValueError: It is none that this version reads, or one of other ids.
        """
        document = _Document.model_validate_json((directory / f"{name}.json").read_bytes())
        arrays = map_tensors(directory / f"{name}.safetensors")
        num_ids = document.num_rows - 1
        found = {key: (array.dtype, array.shape) for key, array in arrays.items()}
        expected = {
            "pilots": (np.dtype(np.uint16), (num_buckets(num_ids),)),
            "moved": (np.dtype(np.int32), (num_spare(num_ids),)),
        }
        if found != expected:
            raise ValueError(f"it holds {found}; placed ids of {document.num_rows} rows hold {expected}")
        moved = arrays["moved"]
        if not 0 <= int(moved.min()) <= int(moved.max()) < max(1, num_ids):
            raise ValueError(f"it names rows {moved.min()} to {moved.max()}: its table has {num_ids} with ids, from 0")
        return cls(PerfectHash(arrays["pilots"], moved, num_ids, document.seed), keys)

    def _find(self, ids: npt.NDArray[np.int64], missing: int, rows: npt.NDArray[np.int32]) -> int:
        num_missing: int = find_placed(*self.numbering, *self._keys_at, missing, ids, rows)
        return num_missing


def save_places(places: PerfectHash, directory: Path, name: str) -> None:
    """Write ``<name>.json`` and ``<name>.safetensors``; the ids are in the table's file."""
    save_file({"pilots": places.pilots, "moved": places.moved}, directory / f"{name}.safetensors")
    document = _Document(num_rows=places.num_ids + 1, seed=places.seed)
    (directory / f"{name}.json").write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")


def slot_bytes(row_bytes: int) -> int:
    """Bytes of a row with its id before it: a power of two up to a cache line, so that none lies in two; else a multiple of 8.

    Example:
        >>> [slot_bytes(row_bytes) for row_bytes in (4, 20, 36, 68, 256)]
        [16, 32, 64, 80, 264]
    """
    needed = KEY_BYTES + row_bytes
    if needed <= _LINE_BYTES:
        return max(2 * KEY_BYTES, 1 << (needed - 1).bit_length())
    return -(-needed // KEY_BYTES) * KEY_BYTES
