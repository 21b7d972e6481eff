"""Edges in memory: what a view hands to torch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from multifacet.graphdb.merging import column_pointers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """The edges of one relation, ordered by (dst, time).

    Attributes:
        src: int32 [E], idx within the relation's src node type.
        dst: int32 [E], idx within the relation's dst node type.
        time: int64 [E], microseconds since the epoch (UTC), or None for an untimed relation.
        weight: float32 [E], or None for an unweighted relation.
    """

    src: Tensor
    dst: Tensor
    time: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.src)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Triples:
    """Edges of several relations as (head, relation, tail).

    Attributes:
        head: int32 [T], idx within the src node type of the triple's relation.
        relation: int32 [T], position in the view's relations.
        tail: int32 [T], idx within the dst node type of the triple's relation.
    """

    head: Tensor
    relation: Tensor
    tail: Tensor

    def __len__(self) -> int:
        return len(self.head)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Csc:
    """Compressed sparse columns of one relation: the in-neighbours of each dst node, oldest first.

    Attributes:
        colptr: int64 [num_dst + 1]; the in-edges of dst `d` are `colptr[d]:colptr[d + 1]`.
        row: int32 [E], src idx.
        time: int64 [E] microseconds, or None.
        weight: float32 [E], or None.
    """

    colptr: Tensor
    row: Tensor
    time: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def from_edges(cls, edges: Edges, num_dst: int) -> Csc:
        """Builds the columns of `edges`, which are ordered by dst already: only the pointers are computed."""
        colptr = torch.from_numpy(column_pointers(edges.dst.numpy(), num_dst))
        return cls(colptr=colptr, row=edges.src, time=edges.time, weight=edges.weight)
