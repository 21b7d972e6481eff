"""Memory: loads that begin before they are needed, rows gathered into a block, huge pages, and what the C library keeps."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from multifacet.kernels.half_precision import load

_AHEAD: Final = 8  # rows that are on their way from memory while one is copied
_HUGE_PAGE_BYTES: Final = 1 << 21
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # <malloc.h>'s numbers of what mallopt sets
_LARGEST_INT: Final = (1 << 31) - 1


def _prefetch(typing_context: Any, array: Any, offset_bytes: Any) -> Any:  # noqa: ARG001

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, int32 = ir.IntType(8), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(builder.bitcast(data, byte.as_pointer()), [arguments[1]])
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]
        builder.call(function, [place, int32(0), int32(3), int32(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
"""``prefetch(array, offset_bytes)``, in kernels: begin to load the cache line at a byte offset of a contiguous array.

It never waits and never faults: a kernel that knows its next places asks for them all, so that the processor waits for
many at once and not for one after the other.
"""


def _prefetch_at(typing_context: Any, address: Any) -> Any:  # noqa: ARG001

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        byte, int32 = ir.IntType(8), ir.IntType(32)
        place = builder.inttoptr(arguments[0], byte.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]
        builder.call(function, [place, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


prefetch_at: Any = intrinsic(_prefetch_at)
"""``prefetch_at(address)``, in kernels: as `prefetch`, of memory that the kernel knows by its address (uintp)."""


def _load_at(typing_context: Any, address: Any) -> Any:  # noqa: ARG001

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        word = builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.int64(types.uintp), generate


load_at: Any = intrinsic(_load_at)
"""``load_at(address)``, in kernels: the eight bytes there as int64; the address need not be aligned."""


def _mover(num_bytes: int) -> Any:
    """An intrinsic that copies so many bytes by one load and one store: ``move(target, source)``, addresses as uintp."""

    def move(typing_context: Any, target: Any, source: Any) -> Any:  # noqa: ARG001

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            vector = ir.VectorType(ir.IntType(8), num_bytes).as_pointer()
            loaded = builder.load(builder.inttoptr(arguments[1], vector))
            loaded.align = 1
            builder.store(loaded, builder.inttoptr(arguments[0], vector)).align = 1
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp), generate

    return intrinsic(move)


_move_32, _move_16, _move_8, _move_1 = (_mover(num_bytes) for num_bytes in (32, 16, 8, 1))


@numba.njit(nogil=True, cache=True, inline="always")
def copy_bytes(target: Any, source: Any, num_bytes: Any) -> None:
    """Copy bytes from one address to another, uintp: for the short rows that a call of memcpy costs more than.

    The last step ends where the bytes end, and may copy some of those before it again: an odd length then costs one step, not
    one for each of its bytes. Nothing beyond the bytes is read or written; the two places must not overlap.
    """
    place = np.uintp(0)
    if num_bytes >= np.uintp(32):
        last = num_bytes - np.uintp(32)
        while place < last:
            _move_32(target + place, source + place)
            place += np.uintp(32)
        _move_32(target + last, source + last)
    elif num_bytes >= np.uintp(16):
        _move_16(target, source)
        _move_16(target + num_bytes - np.uintp(16), source + num_bytes - np.uintp(16))
    elif num_bytes >= np.uintp(8):
        _move_8(target, source)
        _move_8(target + num_bytes - np.uintp(8), source + num_bytes - np.uintp(8))
    else:
        while place < num_bytes:
            _move_1(target + place, source + place)
            place += np.uintp(1)


@numba.njit(nogil=True, cache=True)
def gather_rows(table: Any, rows: Any, block: Any) -> None:
    """Copy rows [n] of a table [num_rows, D], of any format of `kernels.half_precision`, to a float32 block [n, D].

    They must lie within the table, as nothing checks them.
    """
    dim = table.shape[1]
    for position in range(len(rows)):
        if position + _AHEAD < len(rows):
            place = np.int64(rows[position + _AHEAD]) * dim * table.itemsize
            for line in range(0, dim * table.itemsize, 64):
                prefetch(table, place + line)
        source, target = table[rows[position]], block[position]
        for column in range(dim):
            target[column] = load(source, column)


def empty_on_huge_pages(num_bytes: int) -> NDArray[np.uint8]:
    """Allocate bytes, on huge pages if they fill several and the system has them. Contents are undefined (zero on first use).

    A table of hundreds of megabytes has more pages of 4 KiB than the processor remembers addresses of. Nearly every row then
    waits for a walk through the page table before it waits for its own bytes. Pages of 2 MiB make it 512 times fewer. The
    system gives them to who asks (`madvise`), where its setting is "madvise" or "always"; elsewhere this is ordinary memory.

    Raises:
        MemoryError: The system does not give so much.
    """
    if num_bytes < 2 * _HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(num_bytes, dtype=np.uint8)
    try:
        mapped = mmap.mmap(-1, num_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"a table of {num_bytes} bytes could not be allocated: {error}") from error
    try:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return np.empty(num_bytes, dtype=np.uint8)
    whole = np.frombuffer(mapped, dtype=np.uint8)
    # A page that begins before the array does would hold less of it.
    begin = -whole.ctypes.data % _HUGE_PAGE_BYTES
    return whole[begin : begin + num_bytes]


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to its peak, for what it allocates next.

    glibc gives blocks of over 32 MB back to the system when they are freed, and a step's next tensor of that size is then new
    memory: each of its pages is a fault, and is filled with zeros first. A ranker that reads a sequence of 20 pins spent 60% of
    its time in the kernel for that; with freed memory kept, 4%, and nothing else changes. It is for a process that trains; one
    that serves for weeks had better give memory back. It cannot be undone.

    Returns:
        Whether the C library is one that can be told so: glibc.
    """
    return _set(((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, _LARGEST_INT), (_TOP_PAD, 64 << 20)))


def give_freed_memory_back() -> bool:
    """Let this process give what it frees back to the system soon: for one that serves for weeks, whatever clients send it.

    glibc keeps freed blocks of up to 32 MB for later, in up to eight heaps a core that threads spread over. A server that is
    sent large messages for a minute then stays as large as it was, and a little larger after the next minute. Blocks from 1 MiB
    on are mapped by themselves instead, heaps are four, and their free ends go back. It cannot be undone.

    Returns:
        Whether the C library is one that can be told so: glibc.
    """
    return _set(((_MMAP_THRESHOLD, 1 << 20), (_TRIM_THRESHOLD, 1 << 20), (_ARENA_MAX, 4)))


def _set(settings: tuple[tuple[int, int], ...]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)
