"""Which line of a text file each of its records begins on, where values hold line breaks or lines are blank."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: What a file's compression is called, by the end of its name.
COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
_CHUNK_BYTES: Final = 1 << 24
_NEW_LINE: Final = ord("\n")
_RETURN: Final = ord("\r")


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """The records of a text file, blank lines among them, in order.

    Attributes:
        line: int64 [R], the line, from 1, on which each begins.
        is_blank: bool [R], whether it is a blank line.
    """

    line: NDArray[np.int64]
    is_blank: NDArray[np.bool_]


def count_lines(file: str) -> int:
    """Gives the number of lines of a file, which may be compressed; the last one counts without a break, too."""
    number, last = 0, b"\n"
    with pa.input_stream(file, compression=COMPRESSIONS.get(Path(file).suffix.lower())) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            number += chunk.count(b"\n")
            last = chunk[-1:]
    return number + (last != b"\n")


def read_records(file: str, quote: str) -> Records:
    """Finds the records of a file: lines, but for breaks within quotes.

    Args:
        file: The file, in an encoding that has ASCII's bytes, which may be compressed.
        quote: What values may be quoted by; empty where nothing is quoted.
    """
    ends, lengths, lines = [], [], []
    offset = num_lines = num_quotes = 0
    last_end = -1
    returned = False
    with pa.input_stream(file, compression=COMPRESSIONS.get(Path(file).suffix.lower())) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            values = np.frombuffer(chunk, np.uint8)
            breaks = np.flatnonzero(values == _NEW_LINE)
            quotes = np.cumsum(values == ord(quote), dtype=np.int64) if quote else np.zeros(len(values), np.int64)
            is_end = (num_quotes + quotes[breaks]) % 2 == 0
            found = breaks[is_end]
            # A return before the break is part of it.
            before = np.where(found > 0, values[found - 1], _RETURN if returned else 0)
            starts = np.concatenate([[last_end], found[:-1] + offset]) if len(found) else found
            ends.append(found + offset)
            lengths.append(found + offset - starts - 1 - (before == _RETURN))
            lines.append(num_lines + np.flatnonzero(is_end) + 1)
            last_end = int(ends[-1][-1]) if len(found) else last_end
            num_lines += len(breaks)
            num_quotes += int(quotes[-1])
            offset += len(values)
            returned = bool(values[-1] == _RETURN)
    last_lines = np.concatenate([*lines, [0]])[:-1].astype(np.int64)
    is_blank = np.concatenate([*lengths, [0]])[:-1] == 0
    first_lines = np.concatenate([[0], last_lines])[: len(last_lines)] + 1
    if offset > last_end + 1:
        # The last line has no break.
        first_lines = np.append(first_lines, (last_lines[-1] if len(last_lines) else 0) + 1)
        is_blank = np.append(is_blank, False)
    return Records(first_lines, is_blank)


def line_shifts(
    records: Records, *, num_good: int, num_before: int, malformed: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Tells by how much the lines of a file's rows are other than their number in the file.

    Args:
        records: The file's records.
        num_good: Rows that were read.
        num_before: Records before the first row: the line of names, if there is one.
        malformed: Numbers, from 1, of records that are no rows.

    Returns:
        Positions of rows, from 0, and how many lines below `position + num_before + 1` a row stands from each of them on; None
        where the records are not those that were read.
    """
    is_row = ~records.is_blank
    is_row[np.flatnonzero(is_row)[:num_before]] = False
    is_row[malformed[malformed <= len(is_row)] - 1] = False
    lines = records.line[is_row]
    if len(lines) != num_good:
        return None
    shifts = lines - (np.arange(num_good) + num_before + 1)
    starts = np.flatnonzero(np.diff(shifts, prepend=0))
    return starts, shifts[starts]
