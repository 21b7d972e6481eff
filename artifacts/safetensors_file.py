"""Arrays of a safetensors file, mapped into memory without torch.

safetensors' own reader maps a file for torch only; for NumPy it copies. A lookup server has indexes of gigabytes that it shares
with other processes, and no other use for torch, which takes seconds to import. The format is public: eight bytes with the
length of a JSON header, the header, and the arrays at the offsets that it names
(https://github.com/huggingface/safetensors/blob/main/docs/source/index.mdx).
"""

from __future__ import annotations

import json
import mmap
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}


def map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of a file; pages are read when they are touched.

    Args:
        path: A safetensors file of uint8, int32, int64, float16 and float32 arrays.

    Returns:
        Arrays by name; the file stays mapped as long as one of them lives. They may be written to, as arrays in memory may, so
        that kernels are compiled once for both; it does not reach the file.

    Raises:
        ValueError: It is no safetensors file, or has arrays of another type.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + header_bytes
        if size < _LENGTH_BYTES or header_bytes > _MAX_HEADER_BYTES or start > size:
            raise ValueError(f"{path} is not a safetensors file: it has {size} bytes, its header says {header_bytes}.")
        try:
            header = json.loads(stream.read(header_bytes))
            entries = {name: _entry(entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a safetensors file that is read here: {error!r}.") from error
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    arrays = {}
    for name, (dtype, shape, begin, end) in entries.items():
        count = int(np.prod(shape, dtype=np.int64))
        misplaced = begin > end or end > size - start or (start + begin) % dtype.itemsize
        if misplaced or end - begin != count * dtype.itemsize:
            raise ValueError(
                f"{path} is not a safetensors file: {name!r} of {dtype} {list(shape)} is not bytes {begin} to {end} of "
                f"{size - start}."
            )
        arrays[name] = np.frombuffer(mapped, dtype, count, start + begin).reshape(shape)
    return arrays


def _entry(entry: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape {shape}, offsets {begin} and {end}")
    return _DTYPES[entry["dtype"]], shape, begin, end
