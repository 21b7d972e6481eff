"""Matrix products of float32 inside numba kernels, so that what surrounds them needs no interpreter and no lock.

A step over chunks makes products of some hundred rows each. Called one by one from Python, each costs a dispatch and, with two
threads, a fight for the interpreter's lock; numba's own `np.dot` calls SciPy's OpenBLAS, which would start threads of its own.
These kernels run on the caller's thread and know nothing of Python.

    gemm(left [M, K], False, right [K, N], False, out [M, N])      left right
    gemm(left [M, K], False, right [N, K], True, out [M, N])       left right^T
    gemm(left [K, M], True, right [K, N], False, out [M, N])       left^T right

All arrays are contiguous, no dimension may be 0, and `out` is overwritten. As in BLIS, the right side is packed into panels, 16
columns wide (the last one 8), that stay in the first cache while a tile of 6 x 16 (12 x 8) sums in registers runs down the
rows. A last tile that would stand over the edge is moved back instead, and writes some sums twice. The tiles are LLVM vectors,
so that each processor gets its own instructions; the sums are taken in the order of K, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["gemm"]

_FLOAT: Final = ir.FloatType()
_INT: Final = ir.IntType(64)
_LANE: Final = ir.IntType(32)
_ALIGNMENT: Final = 4


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any, position: int) -> Any:
    """Point at an offset (the argument after the array) of a contiguous array."""
    array = context.make_array(signature.args[position])(context, builder, arguments[position])
    return builder.gep(array.data, [arguments[position + 1]])


def _load(builder: Any, pointer: Any, width: int) -> Any:
    vector = builder.load(builder.bitcast(pointer, ir.VectorType(_FLOAT, width).as_pointer()))
    vector.align = _ALIGNMENT
    return vector


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = _ALIGNMENT


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes))


def _make_tile(num_rows: int, width: int) -> Any:
    """Make the kernel of a tile: `num_rows` by `width` sums over `depth`, kept in registers, then stored."""
    vector_type = ir.VectorType(_FLOAT, width)
    nothing = ir.Constant(vector_type, ir.Undefined)

    def tile(
        typing_context: Any,  # noqa: ARG001
        left: Any,
        left_offset: Any,  # noqa: ARG001
        row_stride: Any,  # noqa: ARG001
        depth_stride: Any,  # noqa: ARG001
        panel: Any,
        panel_offset: Any,  # noqa: ARG001
        depth: Any,  # noqa: ARG001
        out: Any,
        out_offset: Any,  # noqa: ARG001
        out_stride: Any,  # noqa: ARG001
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base = _pointer(context, builder, signature, arguments, 0)
            row_stride, depth_stride = arguments[2], arguments[3]
            panel = _pointer(context, builder, signature, arguments, 4)
            depth = arguments[6]
            target = _pointer(context, builder, signature, arguments, 7)
            rows = [base]
            for _ in range(1, num_rows):
                rows.append(builder.gep(rows[-1], [row_stride]))
            entry, loop, done = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("store")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(_INT)
            step.add_incoming(ir.Constant(_INT, 0), entry)
            sums = [builder.phi(vector_type) for _ in rows]
            shared = _load(builder, builder.gep(panel, [builder.mul(step, ir.Constant(_INT, width))]), width)
            offset = builder.mul(step, depth_stride)
            flags = ("contract",)
            grown = []
            for row, total in zip(rows, sums, strict=True):
                value = builder.insert_element(nothing, builder.load(builder.gep(row, [offset])), ir.Constant(_LANE, 0))
                value = _shuffle(builder, value, nothing, [0] * width)
                grown.append(builder.fadd(total, builder.fmul(value, shared, flags=flags), flags=flags))
            following = builder.add(step, ir.Constant(_INT, 1))
            step.add_incoming(following, builder.block)
            for total, larger in zip(sums, grown, strict=True):
                total.add_incoming(ir.Constant(vector_type, [0.0] * width), entry)
                total.add_incoming(larger, builder.block)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
            builder.position_at_end(done)
            for number, larger in enumerate(grown):
                if number:
                    target = builder.gep(target, [arguments[9]])
                _store(builder, larger, target)
            return context.get_dummy_value()

        numbers = types.intp, types.intp
        return types.void(left, *numbers, types.intp, panel, *numbers, out, *numbers), generate

    return intrinsic(tile)


def _transpose(
    typing_context: Any,  # noqa: ARG001
    source: Any,
    source_offset: Any,  # noqa: ARG001
    source_stride: Any,  # noqa: ARG001
    target: Any,
    target_offset: Any,  # noqa: ARG001
    target_stride: Any,  # noqa: ARG001
) -> tuple[Any, Callable[..., Any]]:
    """Turn a block of 8 x 8 in registers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature, arguments, 0)
        rows = []
        for _ in range(8):
            rows.append(_load(builder, place, 8))
            place = builder.gep(place, [arguments[2]])
        # Pairs, then fours within half a vector, then halves: each an instruction of its own on x86.
        pairs = []
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            pairs.append(_shuffle(builder, first, second, [0, 8, 1, 9, 4, 12, 5, 13]))
            pairs.append(_shuffle(builder, first, second, [2, 10, 3, 11, 6, 14, 7, 15]))
        fours = []
        for position in (0, 1, 4, 5):
            fours.append(_shuffle(builder, pairs[position], pairs[position + 2], [0, 1, 8, 9, 4, 5, 12, 13]))
            fours.append(_shuffle(builder, pairs[position], pairs[position + 2], [2, 3, 10, 11, 6, 7, 14, 15]))
        turned = [_shuffle(builder, fours[number], fours[number + 4], [0, 1, 2, 3, 8, 9, 10, 11]) for number in range(4)]
        turned += [_shuffle(builder, fours[number], fours[number + 4], [4, 5, 6, 7, 12, 13, 14, 15]) for number in range(4)]
        place = _pointer(context, builder, signature, arguments, 3)
        for row in turned:
            _store(builder, row, place)
            place = builder.gep(place, [arguments[5]])
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


def _make_copy(width: int) -> Any:
    def copy(
        typing_context: Any,  # noqa: ARG001
        source: Any,
        source_offset: Any,  # noqa: ARG001
        target: Any,
        target_offset: Any,  # noqa: ARG001
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = _load(builder, _pointer(context, builder, signature, arguments, 0), width)
            _store(builder, vector, _pointer(context, builder, signature, arguments, 2))
            return context.get_dummy_value()

        return types.void(source, types.intp, target, types.intp), generate

    return intrinsic(copy)


_tile_6x16, _tile_1x16, _tile_12x8, _tile_1x8 = _make_tile(6, 16), _make_tile(1, 16), _make_tile(12, 8), _make_tile(1, 8)
_copy_16, _copy_8 = _make_copy(16), _make_copy(8)
_transpose_8x8: Any = intrinsic(_transpose)


@numba.njit(nogil=True, cache=True)
def _pack(right: Any, column: int, width: int, panel: Any) -> None:
    """Copy columns of the right side [K, N]; those beyond N are 0."""
    depth, num_columns = right.shape
    for step in range(depth):
        if width == 16:
            _copy_16(right, step * num_columns + column, panel, step * 16)
        elif num_columns >= 8:
            _copy_8(right, step * num_columns + column, panel, step * 8)
        else:
            for lane in range(8):
                panel[step * 8 + lane] = right[step, lane] if lane < num_columns else np.float32(0.0)


@numba.njit(nogil=True, cache=True)
def _pack_turned(right: Any, column: int, width: int, panel: Any) -> None:
    """Copy rows of the right side [N, K] as columns; those beyond N are 0."""
    num_columns, depth = right.shape
    if depth >= 8 and num_columns >= 8:
        for lane in range(0, width, 8):
            for step in range(0, depth, 8):
                begin = min(step, depth - 8)
                _transpose_8x8(right, (column + lane) * depth + begin, depth, panel, begin * width + lane, width)
    else:
        for step in range(depth):
            for lane in range(width):
                inside = column + lane < num_columns
                panel[step * width + lane] = right[column + lane, step] if inside else np.float32(0.0)


@numba.njit(nogil=True, cache=True)
def _fill_columns(
    left: Any, row_stride: int, depth_stride: int, depth: int, panel: Any, width: int, out: Any, column: int
) -> None:
    """Run the tiles of a panel down all rows."""
    num_rows, stride = out.shape
    height = 6 if width == 16 else 12
    if num_rows < height:
        for row in range(num_rows):
            arguments = left, row * row_stride, row_stride, depth_stride, panel, 0, depth, out, row * stride + column, stride
            if width == 16:
                _tile_1x16(*arguments)
            else:
                _tile_1x8(*arguments)
        return
    for row in range(0, num_rows, height):
        begin = min(row, num_rows - height)
        arguments = left, begin * row_stride, row_stride, depth_stride, panel, 0, depth, out, begin * stride + column, stride
        if width == 16:
            _tile_6x16(*arguments)
        else:
            _tile_12x8(*arguments)


@numba.njit(nogil=True, cache=True)
def gemm(left: Any, turns_left: bool, right: Any, turns_right: bool, out: Any) -> None:
    """Write a product; see the module. One kernel for all kinds of sides, as numba compiles it anew into every caller."""
    num_columns = out.shape[1]
    row_stride, depth_stride = (1, left.shape[1]) if turns_left else (left.shape[1], 1)
    depth = right.shape[1] if turns_right else right.shape[0]
    panel = np.empty(16 * depth, dtype=np.float32)
    padded = np.empty((out.shape[0] if num_columns < 8 else 0, 8), dtype=np.float32)
    column = 0
    while column < num_columns:
        width = 16 if num_columns >= 16 and num_columns - column > 8 else 8
        begin = max(min(column, num_columns - width), 0)
        if turns_right:
            _pack_turned(right, begin, width, panel)
        else:
            _pack(right, begin, width, panel)
        if num_columns < 8:
            _fill_columns(left, row_stride, depth_stride, depth, panel, width, padded, 0)
            for row in range(out.shape[0]):
                for lane in range(num_columns):
                    out[row, lane] = padded[row, lane]
        else:
            _fill_columns(left, row_stride, depth_stride, depth, panel, width, out, begin)
        column += width
