"""Rows of tables that processes share, brought together: TorchRec's ShardedTensor, and DTensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_BLOCK_ROWS: Final = 1 << 16


def is_sharded(table: object) -> bool:
    """Tell whether a table is one of which each process holds a part."""
    return isinstance(table, ShardedTensor) or _is_dtensor(table)


def _is_dtensor(table: object) -> bool:
    # Not by its class, whose import takes a quarter of a second.
    return isinstance(table, Tensor) and hasattr(table, "full_tensor")


def gather_rows(table: Any) -> Tensor:
    """Bring the rows of a sharded table together.

    Every process of the table's group must call it, and each gets the whole table.

    Args:
        table: ShardedTensor or DTensor [n, D], such as TorchRec's under DistributedModelParallel, however it is divided. A
            plain tensor is given back as it is, on the CPU.

    Returns:
        [n, D] on the CPU, in the table's type.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it does not have two dimensions.
    """
    if not isinstance(table, Tensor | ShardedTensor):
        raise TypeError(f"table is a {type(table).__name__}; expected a tensor, ShardedTensor or DTensor [rows, columns]")
    if len(table.size()) != 2:
        raise ValueError(f"table has the shape {list(table.size())}; expected [rows, columns]")
    if _is_dtensor(table):
        rows: Tensor = table.detach().full_tensor().cpu()  # type: ignore[attr-defined]
        return rows
    if not isinstance(table, ShardedTensor):
        return table.detach().cpu()
    whole = torch.empty(tuple(table.size()), dtype=table.dtype)
    for start, rows in _float_blocks(table, _row_ranges(table)):
        whole[start : start + len(rows)] = rows
    return whole


def encode_sharded(table: Any, encode_rows: Callable[[Tensor], Tensor], row_bytes: int) -> Tensor:
    """Encode a sharded table: whole rows by the process that holds them, and only what was encoded is sent.

    Args:
        table: ShardedTensor or DTensor [n, D].
        encode_rows: Encodes rows [m, D], uint8 [m, row_bytes].
        row_bytes: Bytes of an encoded row.

    Returns:
        uint8 [n, row_bytes], the same in every process of the group.

    Raises:
        ValueError: In every process, if a row cannot be encoded in one.
    """
    if _is_dtensor(table):
        return encode_rows(gather_rows(table))
    encoded = torch.empty((table.size(0), row_bytes), dtype=torch.uint8)
    divided = []
    for block in _row_ranges(table):
        if len(block.owners) > 1:
            divided.append(block)  # a row's scale depends on all of its columns
            continue
        own = block.parts.get(0)
        rows, error = None, None
        try:
            rows = encode_rows(own.cpu()) if own is not None else None
        except ValueError as refused:
            error = f"of rows {block.start} to {block.stop - 1} of the sharded table: {refused}"
        _agree(error, block.owners[0], table._process_group)
        target = encoded[block.start : block.stop]
        target.copy_(_broadcast(rows, target, block.owners[0], table._process_group))
    for start, floats in _float_blocks(table, divided):
        try:
            encoded[start : start + len(floats)] = encode_rows(floats)
        except ValueError as refused:  # in every process, as each has the same rows
            raise ValueError(f"of rows {start} to {start + len(floats) - 1} of the sharded table: {refused}") from refused
    return encoded


class _RowRange(NamedTuple):
    """Rows whose columns lie together, or are divided.

    Attributes:
        start: First row.
        stop: Row behind the last.
        columns: First and last column + 1 of each part.
        owners: Rank of each part.
        parts: The parts that this process holds, by their place.
    """

    start: int
    stop: int
    columns: list[tuple[int, int]]
    owners: list[int]
    parts: dict[int, Tensor]


def _row_ranges(table: Any) -> list[_RowRange]:
    """Give the parts of a table, those of the same rows together; the same on each rank but for `parts`."""
    here = {tuple(shard.metadata.shard_offsets): shard.tensor.detach() for shard in table.local_shards()}
    ranges: dict[tuple[int, int], _RowRange] = {}
    for shard in sorted(table.metadata().shards_metadata, key=lambda each: tuple(each.shard_offsets)):
        (row, column), (num_rows, num_columns) = shard.shard_offsets, shard.shard_sizes
        if not num_rows or not num_columns:
            continue
        block = ranges.setdefault((row, row + num_rows), _RowRange(row, row + num_rows, [], [], {}))
        if (row, column) in here:
            block.parts[len(block.owners)] = here[row, column]
        block.columns.append((column, column + num_columns))
        block.owners.append(shard.placement.rank())
    return list(ranges.values())


def _float_blocks(table: Any, ranges: list[_RowRange]) -> Iterator[tuple[int, Tensor]]:
    """Give whole rows in blocks, with their first row."""
    for block in ranges:
        for start in range(block.start, block.stop, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, block.stop)
            rows = torch.empty((stop - start, table.size(1)), dtype=table.dtype)
            for place, (first, last) in enumerate(block.columns):
                part = block.parts.get(place)
                own = part[start - block.start : stop - block.start].cpu() if part is not None else None
                rows[:, first:last] = _broadcast(own, rows[:, first:last], block.owners[place], table._process_group)
            yield start, rows


def _agree(error: str | None, owner: int, group: ProcessGroup) -> None:
    """Let every process raise what one of them has met, so that none waits for it."""
    told = [error]
    dist.broadcast_object_list(told, src=owner, group=group)
    if told[0] is not None:
        raise ValueError(told[0])


def _broadcast(rows: Tensor | None, like: Tensor, owner: int, group: ProcessGroup) -> Tensor:
    """Send a part from the process that holds it to the others."""
    device = torch.device("cpu") if dist.get_backend(group) == "gloo" else torch.device("cuda", torch.cuda.current_device())
    sent = rows.contiguous() if rows is not None else torch.empty(like.shape, dtype=like.dtype)
    sent = sent.to(device)
    dist.broadcast(sent, src=owner, group=group)
    return sent.cpu()
