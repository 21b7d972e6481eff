"""A column of external ids (int64 or string) in the one layout that the lookup kernels read."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multifacet.inputs import as_one_array
from multifacet.kernels.hashing import hash_strings
from multifacet.kernels.threads import run_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

IdType = Literal["int64", "string"]
# pyarrow has no types that mypy can read, so its arrays are Any here: pa.Array and pa.ChunkedArray are taken too.
Ids: TypeAlias = "Sequence[int] | Sequence[str] | np.ndarray[Any, Any] | Tensor | Any"

_MIN_IDS_PER_THREAD: Final = 1 << 14


class IdColumn:
    """External ids as flat, read-only arrays.

    Attributes:
        id_type: "int64" or "string".
        keys: int64 [n]: the ids themselves, or XXH64 of each string's UTF-8 bytes.
        offsets: int64 [n + 1], where each string starts in `text`; empty for int64 ids.
        text: uint8, the strings' UTF-8 bytes; empty for int64 ids.
    """

    __slots__ = ("id_type", "keys", "offsets", "text")

    def __init__(
        self,
        id_type: IdType,
        keys: NDArray[np.int64],
        offsets: NDArray[np.int64] | None = None,
        text: NDArray[np.uint8] | None = None,
    ) -> None:
        # Always read-only, so that numba compiles its kernels once and not for each mixture of flags.
        self.id_type: IdType = id_type
        self.keys: NDArray[np.int64] = _read_only(keys)
        self.offsets: NDArray[np.int64] = _read_only(np.zeros(0, np.int64) if offsets is None else offsets)
        self.text: NDArray[np.uint8] = _read_only(np.zeros(0, np.uint8) if text is None else text)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> int | str:
        if self.id_type == "int64":
            return int(self.keys[position])
        return self.text[self.offsets[position] : self.offsets[position + 1]].tobytes().decode()

    @classmethod
    def of(cls, ids: Ids, id_type: IdType | None = None) -> Self:
        """Takes ids in any common container.

        Args:
            ids: int64 or strings [n], as a pyarrow array (chunked or not), a NumPy array, a tensor or a list.
            id_type: What the ids must be; None takes either.

        Raises:
            TypeError: The ids are neither int64 nor strings, or not of `id_type`. Other integer widths are refused
                rather than converted: a table's ids have one type from the log to the server.
            ValueError: There is a null, or the array is not one-dimensional.
        """
        column = to_arrow(ids, id_type)
        if column.null_count:
            first = column.is_null().index(True).as_py()
            raise ValueError(
                f"ids have {column.null_count} nulls, the first at position {first}; drop those rows or give them an id."
            )
        found = _id_type(column.type)
        if found is None or (id_type is not None and found != id_type):
            raise TypeError(
                f"ids are {column.type}; expected {id_type or 'int64 or string'}. "
                f"Convert them where they are loaded, e.g. pyarrow.compute.cast(ids, {(id_type or 'int64')!r})."
            )
        if found == "int64":
            return cls("int64", np.frombuffer(column.buffers()[1] or b"", np.int64)[column.offset :][: len(column)])
        strings = column.cast(pa.large_string())
        _, offset_buffer, text_buffer = strings.buffers()
        offsets = np.frombuffer(offset_buffer or bytes(8), np.int64)[strings.offset :][: len(strings) + 1]
        text = np.frombuffer(text_buffer or b"", np.uint8)
        keys = np.empty(len(strings), np.int64)
        run_ranges(
            lambda start, stop: hash_strings(_read_only(offsets), text, keys, start, stop),
            len(keys),
            min_size=_MIN_IDS_PER_THREAD,
        )
        return cls("string", keys, offsets, text)


def to_arrow(ids: Ids, id_type: IdType | None = None) -> pa.Array:
    """Gives ids as one pyarrow array, without a copy where the container allows; `id_type` is an empty list's type.

    Raises:
        TypeError: The ids are of mixed types.
        ValueError: The ids are not one-dimensional.
    """
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        return as_one_array(ids)
    torch = sys.modules.get("torch")  # where it was not imported there are no tensors, and it need not be for their sake
    values = ids.detach().cpu().numpy() if torch is not None and isinstance(ids, torch.Tensor) else ids
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise ValueError(f"ids have the shape {list(values.shape)}; expected one dimension.")
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError(f"ids are a {type(ids).__name__}; expected a pyarrow array, NumPy array, tensor or list of ids")
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise TypeError(f"ids are not all of one such type ({error}); expected {id_type or 'int64 or string'}.") from error
    if len(column) == 0 and isinstance(ids, Sequence):
        # An empty list has no type of its own.
        return pa.array([], id_type or "int64")
    return column


def _id_type(arrow_type: pa.DataType) -> IdType | None:
    if pa.types.is_int64(arrow_type):
        return "int64"
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type):
        return "string"
    return None


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def find_row(ids: pa.Array, wanted: Any, what: str, *, missing: int | None = None) -> int:
    """Find one id by comparing it with all.

    Args:
        ids: int64 or string [n].
        wanted: The id; text of a number is taken for it where ids are integers.
        what: What the ids are of, for errors.
        missing: What is given for an id that is not there; None to raise.

    Raises:
        KeyError: There is no such id.
        TypeError: The id is of another type.
    """
    is_number = pa.types.is_integer(ids.type)
    if is_number and isinstance(wanted, str) and re.fullmatch(r"-?\d+", wanted):
        wanted = int(wanted)
    if isinstance(wanted, np.integer):
        wanted = int(wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, int if is_number else str):
        kind = "integers" if is_number else "strings"
        raise TypeError(f"{wanted!r} is a {type(wanted).__name__}, and ids of {what!r} are {kind}")
    row: int = pc.index(ids, pa.scalar(wanted, ids.type)).as_py()
    if row < 0:
        if missing is not None:
            return missing
        raise KeyError(f"there is no {what!r} with the id {wanted!r} among {len(ids)}")
    return row
