"""How a feed lies on disk.

    manifest.json            what it is made of: the window, the seed, relations and their ends, counts, each file's sha256
    shards/00000.edges ...   the pairs to learn from, in the order of their hash
    held_out.edges           those that are held out
    known.edges              those of the shards that answer a query of a held-out one: what filtered ranks leave out
    counts.safetensors       pairs of each shard and relation
    degrees.safetensors      how often each node is a head, and a tail
    nodes/0.parquet ...      external ids by row, a file a node type

An `.edges` file is packed records, little-endian, without a header: the manifest's `record` names their fields and types, as
numpy reads them. Files have numbers for names, so that a type or a relation may be called anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multifacet.graphdb.schema import Relation

KIND: Final = "feed"
FORMAT_VERSION: Final = 1
HELD_OUT_FILE: Final = "held_out.edges"
KNOWN_FILE: Final = "known.edges"
COUNTS_FILE: Final = "counts.safetensors"
DEGREES_FILE: Final = "degrees.safetensors"
ID_ROWS: Final = 1 << 20  # of a row group of external ids: they are read a range at a time
MAX_SHARDS: Final = 1 << 16

_INT32_ROWS: Final = 1 << 31


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedRelation:
    """A relation of a feed.

    Attributes:
        name: its name.
        src: node type of the heads.
        dst: node type of the tails.
    """

    name: str
    src: str
    dst: str


def shard_file(number: int) -> str:
    """Name of a shard's file."""
    return f"shards/{number:05d}.edges"


def ids_file(number: int) -> str:
    """Name of the file of a node type's external ids, by the type's number."""
    return f"nodes/{number}.parquet"


def record_of(relations: Sequence[Relation], num_nodes: Mapping[str, int]) -> np.dtype[Any]:
    """Give the record of a window's pairs: relation, src, dst; weight where pairs may repeat, time where some have it."""
    most = max(num_nodes.values(), default=0)
    row = "<i4" if most <= _INT32_ROWS else "<i8"
    fields = [("relation", np.dtype(np.min_scalar_type(max(0, len(relations) - 1))).newbyteorder("<").str)]
    fields += [("src", row), ("dst", row)]
    if any(relation.weighted or relation.timed or relation.duplicates == "all" for relation in relations):
        fields.append(("weight", "<f4"))
    if any(relation.timed for relation in relations):
        fields.append(("time", "<i8"))
    return np.dtype(fields)


def first_rows(num_nodes: Mapping[str, int]) -> dict[str, int]:
    """Give each node type's first number where all types' nodes are counted through."""
    offsets, total = {}, 0
    for name, count in num_nodes.items():
        offsets[name], total = total, total + count
    return offsets
