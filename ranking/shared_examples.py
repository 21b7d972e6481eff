"""Examples that the processes of one run have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import torch
import torch.distributed as dist

from multifacet.ranking.examples import COLUMNS, Examples
from multifacet.ranking.recent import IdLists, RecentPins
from multifacet.tables.assembly import Pieces, assemble

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Before a feature's name, in the names of arrays.
_EXTRA: Final = "extra:"
_IDS: Final = "ids:"
_COUNTS: Final = "counts:"


def share_examples(examples: Examples | None, folder: Path) -> Examples:
    """Give every process of the default group the examples that the first one has drawn.

    They are mapped from files whose names are gone: a host holds them once, however many processes it runs.

    Args:
        examples: The first process's; what others give does not count.
        folder: On a file system that all processes see.

    Returns:
        The same examples in every process.
    """
    arrays: dict[str, NDArray[Any]] = {}
    described: list[Any] = [None]
    if dist.get_rank() == 0:
        if examples is None:
            raise ValueError("the first process has no examples to share: give those that it has drawn")
        arrays = {name: getattr(examples, name) for name in (*COLUMNS, "dense")}
        if examples.recent is not None:
            arrays |= {"pin_ids": examples.recent.pin_ids, "num_recent": examples.recent.num_recent}
        arrays |= {f"{_EXTRA}{name}": numbers for name, numbers in examples.extra.items()}
        for name, values in examples.lists.items():
            arrays |= {f"{_IDS}{name}": values.pin_ids, f"{_COUNTS}{name}": values.num_recent}
        if examples.weight is not None:
            arrays["weight"] = examples.weight
        shapes = {name: (array.shape, torch.from_numpy(array).dtype) for name, array in arrays.items()}
        words = {name: strings.to_pylist() for name, strings in examples.vocabularies.items()}
        described = [(shapes, examples.dense_names, dict(examples.metadata), words)]
    dist.broadcast_object_list(described, src=0)
    shapes, dense_names, metadata, words = described[0]
    whole = assemble(
        folder,
        {
            name: Pieces(shape=shape, dtype=dtype, held=[(0, torch.from_numpy(arrays[name]))] if name in arrays else [])
            for name, (shape, dtype) in shapes.items()
        },
    )
    columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in whole.items()}
    recent = None
    if "pin_ids" in columns:
        recent = RecentPins(pin_ids=columns.pop("pin_ids"), num_recent=columns.pop("num_recent"))
    extra = {name.removeprefix(_EXTRA): columns.pop(name) for name in [*columns] if name.startswith(_EXTRA)}
    listed = [name.removeprefix(_IDS) for name in columns if name.startswith(_IDS)]
    lists = {name: IdLists(pin_ids=columns.pop(f"{_IDS}{name}"), num_recent=columns.pop(f"{_COUNTS}{name}")) for name in listed}
    return Examples(
        **columns,
        dense_names=dense_names,
        metadata=metadata,
        recent=recent,
        extra=extra,
        lists=lists,
        vocabularies={name: pa.array(strings, pa.string()) for name, strings in words.items()},
    )
