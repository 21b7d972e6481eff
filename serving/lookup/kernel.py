"""A framed lookup from the bytes of its request to the bytes of its answer, compiled: nothing of it is interpreted.

Reading a request's message, finding its ids, gathering their rows and writing the answer's message take a twentieth of a
millisecond in Python, half as long as the work itself. This kernel does what is asked nearly always: int64 ids, known
features, a loaded version. Whatever else comes, and whatever must be refused, it hands back untouched, and `LookupServer` reads
it with protobuf's own parser: only one place decides what is refused, and with which words.

While rows of a long answer are still being gathered, those before them are sent: the client's processor copies them out of the
socket meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numba.core import types

from multifacet.serving.lookup.kernel_rows import copy_keyed, copy_rows, find_rows, keyed_table, size_of
from multifacet.serving.lookup.plan_fields import (
    FEATURE_FIELDS,
    HEAD_BYTES,
    MAP_FIELDS,
    MAX_IDS,
    NUM_FEATURES,
    NUM_MAPS,
    NUM_TABLES,
    PLAN_HEAD,
    TABLE_FIELDS,
)
from multifacet.serving.lookup.rows import DISK_US, PROBE_ROWS, ask_disk, now_us
from multifacet.serving.wire.frames import HEADER_BYTES, MAGIC, ROW_ALIGNMENT, Kind

NOT_FOR_KERNEL: Final = -1
TOO_LITTLE_ROOM: Final = -2
VERSION_BYTES: Final = 64
VERSION_END: Final = HEADER_BYTES + 2 + VERSION_BYTES

RESULTS: Final = 3  # length of the answer, how much of it was sent, microseconds; then for each table rows and unknown ids

_MAGIC: Final = tuple(MAGIC)
_ANSWER: Final = int(Kind.ANSWER)
_CHUNK_ROWS: Final = 512
_VERSION, _FEATURES, _REQUEST_ID, _TRACEPARENT = 0x0A, 0x12, 0x1A, 0x22
_NAME, _INT64_IDS = 0x0A, 0x12
_SERVER_US, _UNKNOWN, _NUM_ROWS = 0x18, 0x30, 0x38
_VARINT_BYTES: Final = 5
_LEAST_VARINT: Final = 3
_COUNTS_BYTES: Final = 2 * (1 + _VARINT_BYTES)
_SEND_FLAGS: Final = 0x40 | 0x4000  # MSG_DONTWAIT, MSG_NOSIGNAL

_send: Any = types.ExternalFunction("send", types.intp(types.int32, types.uintp, types.uintp, types.int32))


@numba.njit(nogil=True, cache=True)
def _read_varint(frame: Any, place: Any, stop: Any) -> Any:
    """A length and the place behind it; -1 if it is none, or longer than a message can be."""
    value = np.int64(0)
    for byte in range(4):
        if place >= stop:
            break
        part = np.int64(frame[place])
        place += 1
        value |= (part & 127) << (7 * byte)
        if part < 128:
            return value, place
    return np.int64(-1), place


@numba.njit(nogil=True, cache=True)
def _write_varint(out: Any, place: Any, value: Any, num_bytes: Any) -> Any:
    """A number in that many bytes, which protobuf allows to be more than it needs: lengths do not depend on values then."""
    for byte in range(num_bytes):
        more = 128 if byte < num_bytes - 1 else 0
        out[place + byte] = (value & 127) | more
        value >>= 7
    return place + num_bytes


@numba.njit(nogil=True, cache=True)
def _write_number(out: Any, place: Any, value: Any, num_bytes: Any) -> Any:
    for byte in range(num_bytes):
        out[place + byte] = (value >> (8 * byte)) & 255
    return place + num_bytes


@numba.njit(nogil=True, cache=True)
def _copy(source: Any, first: Any, num_bytes: Any, out: Any, place: Any) -> Any:
    for byte in range(num_bytes):
        out[place + byte] = source[first + byte]
    return place + num_bytes


@numba.njit(nogil=True, cache=True)
def _read_request(frame: Any, stop: Any, plan: Any, text: Any, spans: Any) -> Any:
    """Where each feature's ids are in the frame: spans[feature] = first byte, number of ids.

    Returns:
        How many ids there are; `NOT_FOR_KERNEL` if it is no plain request.
    """
    spans[:] = 0
    place = np.int64(VERSION_END)
    num_ids = np.int64(0)
    while place < stop:
        tag = frame[place]
        length, place = _read_varint(frame, place + 1, stop)
        end = place + length
        if length < 0 or end > stop:
            return NOT_FOR_KERNEL
        if tag in (_REQUEST_ID, _TRACEPARENT):
            while place < end:
                if frame[place] > 127:  # perhaps no UTF-8: for the parser that checks it
                    return NOT_FOR_KERNEL
                place += 1
            continue
        if tag != _FEATURES or place >= end or frame[place] != _NAME:
            return NOT_FOR_KERNEL
        name_bytes, name = _read_varint(frame, place + 1, end)
        place = name + name_bytes
        if name_bytes < 0 or place >= end or frame[place] != _INT64_IDS:
            return NOT_FOR_KERNEL
        ids_bytes, place = _read_varint(frame, place + 1, end)
        if ids_bytes <= 0 or ids_bytes & 7 or place + ids_bytes != end:
            return NOT_FOR_KERNEL
        feature = _feature(frame, name, name_bytes, plan, text)
        if feature < 0 or spans[feature, 1]:
            return NOT_FOR_KERNEL
        spans[feature, 0] = place
        spans[feature, 1] = ids_bytes >> 3
        num_ids += ids_bytes >> 3
        place = end
    return num_ids


@numba.njit(nogil=True, cache=True)
def _feature(frame: Any, name: Any, name_bytes: Any, plan: Any, text: Any) -> Any:
    for feature in range(plan[NUM_FEATURES]):
        known = plan[PLAN_HEAD + FEATURE_FIELDS * feature]
        if plan[PLAN_HEAD + FEATURE_FIELDS * feature + 1] != name_bytes:
            continue
        byte = 0
        while byte < name_bytes and text[known + byte] == frame[name + byte]:
            byte += 1
        if byte == name_bytes:
            return feature
    return -1


@numba.njit(nogil=True, cache=True)
def _lengths(plan: Any, spans: Any) -> Any:
    """Bytes of the message up to its last number's tag, and of the rows."""
    message_bytes = plan[HEAD_BYTES] + 1
    rows_bytes = np.int64(0)
    for table in range(plan[NUM_TABLES]):
        size, at = size_of(plan, spans, table)
        if size:
            message_bytes += 3 + plan[at + 5] + _COUNTS_BYTES
            rows_bytes += (size * plan[at + 3] + ROW_ALIGNMENT - 1) & ~(ROW_ALIGNMENT - 1)
    return message_bytes, rows_bytes


@numba.njit(nogil=True, cache=True)
def _find_all(frame: Any, plan: Any, spans: Any, ids: Any, found: Any, results: Any, memory: Any, rows_start: Any) -> None:
    """Ids to row numbers; `results` gets, for each table, where its own begin in `found`, and how many are unknown.

    Rows that stand with their ids are copied at once to where they belong in the answer.
    """
    maps = PLAN_HEAD + FEATURE_FIELDS * plan[NUM_FEATURES]
    tables = maps + MAP_FIELDS * plan[NUM_MAPS]
    start = np.int64(0)
    for position in range(plan[NUM_MAPS]):
        at = maps + MAP_FIELDS * position
        first = spans[plan[at], 0]
        size = spans[plan[at], 1]
        if not size:
            continue
        aligned = ids[:size]
        aligned_bytes = aligned.view(np.uint8)
        for byte in range(8 * size):
            aligned_bytes[byte] = frame[first + byte]
        keyed, begin = keyed_table(plan, spans, position, rows_start)
        if keyed:
            unknown = copy_keyed(plan, at, keyed, aligned, found[start : start + size], memory, begin)
        else:
            unknown = find_rows(plan, at, aligned, found[start : start + size])
        for table in range(plan[NUM_TABLES]):
            if plan[tables + TABLE_FIELDS * table] == position:
                results[RESULTS + 2 * table] = start
                results[RESULTS + 2 * table + 1] = unknown
        start += size


@numba.njit(nogil=True, cache=True)
def _write_header(frame: Any, out: Any, message_bytes: Any, rows_bytes: Any) -> Any:
    place = np.int64(0)
    for byte in _MAGIC:
        out[place] = byte
        place += 1
    place = _write_number(out, place, np.int64(_ANSWER), 4)
    place = _write_number(out, place, message_bytes, 4)
    place = _write_number(out, place, rows_bytes, 4)
    place = _copy(frame, 16, 8, out, place)
    return _write_number(out, place, np.int64(0), 8)


@numba.njit(nogil=True, cache=True)
def _write_message(plan: Any, text: Any, spans: Any, results: Any, out: Any, place: Any) -> Any:
    """All of the answer's message but its last number."""
    place = _copy(text, 0, plan[HEAD_BYTES], out, place)
    for table in range(plan[NUM_TABLES]):
        size, at = size_of(plan, spans, table)
        if size:
            out[place] = _FEATURES
            place = _write_varint(out, place + 1, plan[at + 5] + _COUNTS_BYTES, 2)
            place = _copy(text, plan[at + 4], plan[at + 5], out, place)
            out[place] = _UNKNOWN
            place = _write_varint(out, place + 1, results[RESULTS + 2 * table + 1], _VARINT_BYTES)
            out[place] = _NUM_ROWS
            place = _write_varint(out, place + 1, size, _VARINT_BYTES)
    out[place] = _SERVER_US
    return place + 1


@numba.njit(nogil=True, cache=True)
def _pad(out: Any, end: Any) -> None:
    while end & (ROW_ALIGNMENT - 1):
        out[end] = 0
        end += 1


@numba.njit(nogil=True, cache=True)
def _write_rows(plan: Any, spans: Any, found: Any, results: Any, memory: Any, place: Any, stream: Any) -> Any:
    """Rows into memory, and to the stream as they come, but for the last ones; how many bytes were sent.

    The end is the caller's to send, once it knows that the rows did not change while they were copied.

    `results` gets each table's number of rows, and keeps its number of unknown ids.
    """
    out = memory.view(np.uint8)
    base = np.uintp(memory.ctypes.data)
    sent = np.int64(0)
    length = results[0]
    clock = np.empty(2, np.int64)
    places = np.empty(_CHUNK_ROWS, np.uint64)
    for table in range(plan[NUM_TABLES]):
        size, at = size_of(plan, spans, table)
        begin = results[RESULTS + 2 * table]
        results[RESULTS + 2 * table] = size
        is_there = plan[at + 7] != 0
        if size > PROBE_ROWS and not is_there:
            started_us = now_us(clock)
            copy_rows(plan, at, found[begin : begin + PROBE_ROWS], places, base + np.uintp(place))
            if now_us(clock) - started_us > DISK_US:
                stride, row_bytes = np.uintp(plan[at + 6]), np.uintp(plan[at + 3])
                ask_disk(np.uintp(plan[at + 1]), stride, row_bytes, found[begin + PROBE_ROWS : begin + size])
        done = np.int64(0)
        while done < size:
            step = size if is_there else min(np.int64(_CHUNK_ROWS), size - done)
            end = place + step * plan[at + 3]
            if end & 7:
                _pad(out, end)
            if not is_there:
                copy_rows(plan, at, found[begin + done : begin + done + step], places, base + np.uintp(place))
            done += step
            place = (end + ROW_ALIGNMENT - 1) & ~(ROW_ALIGNMENT - 1)
            if stream >= 0 and place < length and step == _CHUNK_ROWS:
                num = _send(np.int32(stream), base + np.uintp(sent), np.uintp(place - sent), np.int32(_SEND_FLAGS))
                if num < place - sent:  # its buffer is full, or it is gone: the caller sees to it
                    stream = np.int64(-1)
                sent += max(num, 0)
    return sent


@numba.njit(nogil=True, cache=True)
def answer(
    frame: Any, num_bytes: Any, plan: Any, text: Any, spans: Any, ids: Any, found: Any, memory: Any, results: Any, stream: Any
) -> Any:
    """Answer one request.

    Args:
        frame: uint8, the request's frame; its header was read, and its version found to be the plan's.
        num_bytes: Length of the frame.
        plan: int64, what to do; see `serving.lookup.kernel_plan`.
        text: uint8, names and beginnings of messages.
        spans: int64 [num_features, 2], room to work in.
        ids: int64 [max_ids], likewise.
        found: int32 [max_ids * maps of a feature], likewise.
        memory: uint64, where the answer's frame is written to; what was in it is overwritten.
        results: int64 [RESULTS + 2 * num_tables], written.
        stream: Descriptor of the socket to send to as it comes, all but the end; -1 for none.

    Returns:
        0; `NOT_FOR_KERNEL`, or `TOO_LITTLE_ROOM` with the length in ``results[0]``: nothing was sent then.
    """
    clock = results[1:3]
    started_us = now_us(clock)
    num_ids = _read_request(frame, num_bytes, plan, text, spans)
    if num_ids < 0 or num_ids > plan[MAX_IDS]:
        return NOT_FOR_KERNEL
    message_bytes, rows_bytes = _lengths(plan, spans)
    # The last number of the message is as long as it must be for the rows to be aligned.
    last_bytes = _LEAST_VARINT + (-(HEADER_BYTES + message_bytes + _LEAST_VARINT)) % ROW_ALIGNMENT
    message_bytes += last_bytes
    results[0] = HEADER_BYTES + message_bytes + rows_bytes
    if results[0] > 8 * len(memory):
        return TOO_LITTLE_ROOM
    out = memory.view(np.uint8)
    _find_all(frame, plan, spans, ids, found, results, out, HEADER_BYTES + message_bytes)
    place = _write_header(frame, out, message_bytes, rows_bytes)
    place = _write_message(plan, text, spans, results, out, place)
    place = _write_varint(out, place, min(now_us(clock) - started_us, (1 << (7 * _LEAST_VARINT)) - 1), last_bytes)
    results[1] = _write_rows(plan, spans, found, results, memory, place, stream)
    results[2] = now_us(np.empty(2, np.int64)) - started_us
    return 0
