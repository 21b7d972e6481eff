"""Loads of memory that begin before they are needed, inside numba kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


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
