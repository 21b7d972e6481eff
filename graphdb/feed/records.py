"""Records of pairs: packing columns, and bringing repeated pairs together in the order of their hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray

    from multifacet.graphdb.feed.edge_hash import EdgeHash

#: The time of a pair of a relation without times.
NO_TIME: Final = np.iinfo(np.int64).min


def pack(dtype: np.dtype[Any], relation: int, columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Give the records of one relation's edges: of weight 1 where the relation has none."""
    records = np.empty(len(columns["src"]), dtype)
    records["relation"] = relation
    for name, missing in (("src", None), ("dst", None), ("weight", 1.0), ("time", NO_TIME)):
        if name in (dtype.names or ()):
            records[name] = columns.get(name, missing)
    return records


def columns_of(records: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give relation, src and dst, each contiguous."""
    return tuple(np.ascontiguousarray(records[name]) for name in ("relation", "src", "dst"))  # type: ignore[return-value]


def in_order(records: NDArray[Any], hash_of: EdgeHash) -> NDArray[Any]:
    """Order edges by their hash, each pair of a relation once: with the sum of its weights and its first time."""
    hashes = hash_of(*columns_of(records))[1]
    order = np.argsort(hashes, kind="stable")
    records, hashes = records[order], hashes[order]
    again = np.zeros(len(records), np.bool_)
    again[1:] = hashes[1:] == hashes[:-1]
    if not again.any():
        return records
    # Only edges of one hash have to be compared: most are one pair's, and two pairs may share a hash.
    shared = again.copy()
    shared[:-1] |= again[1:]
    places = np.flatnonzero(shared)
    names = [name for name in ("weight", "time", "dst", "src", "relation") if name in (records.dtype.names or ())]
    keys = [records[name][places] for name in names]
    records[places] = records[places[np.lexsort((*keys, hashes[places]))]]
    repeats = again
    for name in ("relation", "src", "dst"):
        repeats[1:] &= records[name][1:] == records[name][:-1]
    starts = np.flatnonzero(~repeats)
    first = records[starts]
    if "weight" in (records.dtype.names or ()):
        first["weight"] = np.add.reduceat(records["weight"].astype(np.float64), starts)
    return first


def append(stream: BinaryIO, records: NDArray[Any]) -> None:
    """Write records at a stream's place."""
    if len(records):
        stream.write(np.ascontiguousarray(records).view(np.uint8).data)
