"""Triples as columns: what pretraining and evaluation read, from a graph store's view or from plain text files."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from multifacet.inputs import expect_type, whole
from multifacet.kge.triples.distinct import are_among, are_joined, first_positions, first_times, sorted_order
from multifacet.kge.triples.text import TextTriples

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from multifacet.graphdb import GraphView
    from multifacet.kge.config import KgeValidation

__all__ = ["EdgeList", "TripleSet", "TripleSplit"]

logger = logging.getLogger(__name__)

# The one node type of triples that come from text, which says nothing of types.
_ENTITY: Final = "entity"


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeList:
    """Heads and tails of one relation.

    Attributes:
        heads: int32 [E], idx within the relation's src type.
        tails: int32 [E], idx within the relation's dst type.
    """

    heads: NDArray[np.int32]
    tails: NDArray[np.int32]

    def __post_init__(self) -> None:
        expect_type("heads", self.heads, np.ndarray)
        expect_type("tails", self.tails, np.ndarray)

    def __len__(self) -> int:
        return len(self.heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class TripleSet:
    """Triples of several relations, with the vocabulary that their numbers count in.

    Attributes:
        heads: int32 [T], idx within the src type of the triple's relation.
        relations: int32 [T], position in `relation_names`.
        tails: int32 [T], idx within the dst type of the triple's relation.
        relation_names: the relations' names, each once.
        ends: relation name -> (node type of its heads, node type of its tails).
        num_nodes: node type -> rows, so that every idx of the type is below it.
        ids: node type -> external id of each idx, where known.
        times: int64 [T], microseconds since the epoch (UTC), `NO_TIME` for a relation without times; None if none has any.
        weights: float64 [T], above zero: a triple of weight w is learned from as if it stood there w times; None for 1.

    Raises:
        ValueError: if the columns' lengths differ, a number lies outside its vocabulary, a type or name is missing, or a
            weight is not a finite number above zero.

    Example:
        >>> triples = TripleSet(
        ...     heads=np.int32([0, 1]), relations=np.int32([0, 0]), tails=np.int32([2, 2]),
        ...     relation_names=("likes",), ends={"likes": ("user", "pin")}, num_nodes={"user": 2, "pin": 3},
        ... )
        >>> triples
        TripleSet(user=2, pin=3, (user, likes, pin)=2)
    """

    heads: NDArray[np.int32]
    relations: NDArray[np.int32]
    tails: NDArray[np.int32]
    relation_names: tuple[str, ...]
    ends: Mapping[str, tuple[str, str]]
    num_nodes: Mapping[str, int]
    ids: Mapping[str, pa.Array] = field(default_factory=dict)
    times: NDArray[np.int64] | None = None
    weights: NDArray[np.float64] | None = None

    NO_TIME = np.iinfo(np.int64).min

    def __post_init__(self) -> None:
        self._check_columns()
        self._check_vocabulary()
        if self.weights is not None:
            self._check_weights(self.weights)

    def _check_columns(self) -> None:
        columns = {"heads": self.heads, "relations": self.relations, "tails": self.tails}
        for name, column in columns.items():
            expect_type(name, column, np.ndarray)
            if column.dtype != np.int32 or column.shape != self.heads.shape or column.ndim != 1:
                raise ValueError(
                    f"{name} must be an int32 column as long as heads ({len(self.heads)}), got {column.dtype} {column.shape}"
                )
        if self.times is not None and self.times.shape != self.heads.shape:
            raise ValueError(f"times must be a column as long as heads ({len(self.heads)}), got {self.times.shape}")

    def _check_vocabulary(self) -> None:
        expect_type("relation_names", self.relation_names, tuple, list)
        expect_type("ends", self.ends, Mapping)
        expect_type("num_nodes", self.num_nodes, Mapping)
        for name, pair in self.ends.items():
            expect_type(f"ends[{name!r}]", pair, tuple, list)
        for node_type, number in self.num_nodes.items():
            whole(0)(f"num_nodes[{node_type!r}]", number)
        if len(set(self.relation_names)) != len(self.relation_names) or set(self.ends) != set(self.relation_names):
            raise ValueError(
                f"relation_names must be distinct and those of ends, got {self.relation_names} and {set(self.ends)}"
            )
        missing = {node_type for pair in self.ends.values() for node_type in pair} - set(self.num_nodes)
        if missing:
            raise ValueError(f"num_nodes lacks the node types {sorted(missing)} that relations end in")
        for node_type, ids in self.ids.items():
            if len(ids) != self.num_nodes[node_type]:
                raise ValueError(f"{node_type}: {self.num_nodes[node_type]} nodes, but {len(ids)} external ids")
        _check_range("relations", self.relations, np.int64(len(self.relation_names)))
        if len(self):
            for name, column, end in (("heads", self.heads, 0), ("tails", self.tails, 1)):
                sizes = np.array([self.num_nodes[self.ends[relation][end]] for relation in self.relation_names])
                _check_range(name, column, sizes[self.relations])

    def _check_weights(self, weights: NDArray[np.float64]) -> None:
        if weights.shape != self.heads.shape or weights.dtype != np.float64:
            raise ValueError(
                f"weights must be a float64 column as long as heads ({len(self.heads)}), got {weights.dtype} {weights.shape}"
            )
        wrong = ~((weights > 0) & np.isfinite(weights))
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ValueError(
                f"weights[{place}] is {weights[place]}: a triple's weight says how often it stands there, so it must be a "
                f"finite number above zero; {int(wrong.sum())} are not"
            )

    @classmethod
    def from_view(cls, view: GraphView, *, relations: Collection[str] | None = None, ids: bool = False) -> Self:
        """Read the edges of a graph window.

        Args:
            view: the window.
            relations: names of the relations to read, in any order; None for all.
            ids: whether to read the nodes' external ids too.

        Returns:
            The triples, relation by relation in the view's order, repeated edges as often as the window has them. An edge of
            weight zero stands there zero times, and is left out.

        Raises:
            ValueError: if the view lacks one of the relations, or an edge has a negative weight.
        """
        names = [relation.name for relation in view.relations]
        if unknown := [name for name in relations or () if name not in names]:
            raise ValueError(f"relations names {unknown}, but the view has {names}")
        chosen = [relation for relation in view.relations if relations is None or relation.name in relations]
        edges = [view.edges(relation.name) for relation in chosen]
        timed = any(edge.time is not None for edge in edges)
        weights = [_repetitions(relation.name, edge.weight) for relation, edge in zip(chosen, edges, strict=True)]
        weighted = any(part is not None for part in weights)
        triples = cls(
            heads=_concatenate([edge.src.numpy() for edge in edges]),
            relations=np.repeat(np.arange(len(chosen), dtype=np.int32), [len(edge) for edge in edges]),
            tails=_concatenate([edge.dst.numpy() for edge in edges]),
            relation_names=tuple(relation.name for relation in chosen),
            ends={relation.name: (relation.src, relation.dst) for relation in chosen},
            num_nodes=dict(view.num_nodes),
            ids={node_type: view.node_ids(node_type) for node_type in view.num_nodes} if ids else {},
            times=np.concatenate(
                [edge.time.numpy() if edge.time is not None else np.full(len(edge), cls.NO_TIME) for edge in edges]
            )
            if timed
            else None,
        )
        if not weighted:
            return triples
        column = np.concatenate(
            [np.ones(len(edge)) if part is None else part for part, edge in zip(weights, edges, strict=True)]
        )
        kept = column > 0
        return replace(triples.take(kept), weights=column[kept])

    def take(self, positions: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Self:
        """Give some of the triples, by position or mask, with the same vocabulary."""
        return replace(
            self,
            heads=self.heads[positions],
            relations=self.relations[positions],
            tails=self.tails[positions],
            times=None if self.times is None else self.times[positions],
            weights=None if self.weights is None else self.weights[positions],
        )

    def edges(self) -> dict[str, EdgeList]:
        """Give each relation's heads and tails, relations without triples included."""
        order = np.argsort(self.relations, kind="stable")
        bounds = np.searchsorted(self.relations[order], np.arange(len(self.relation_names) + 1))
        return {
            name: EdgeList(heads=self.heads[order[begin:end]], tails=self.tails[order[begin:end]])
            for name, begin, end in zip(self.relation_names, bounds[:-1], bounds[1:], strict=True)
        }

    def distinct(self) -> Self:
        """Give each triple once, by its first position, and without weights."""
        return replace(self, weights=None).take(first_positions(self))

    def merged(self) -> Self:
        """Give each triple once, in the order of (relation, head, tail), with the sum of its weights and its first time.

        Repeated triples and weighted ones that say the same become the same set.
        """
        order, repeats = sorted_order(self.relations, self.heads, self.tails)
        starts = np.flatnonzero(~repeats)
        if not len(starts):
            return self
        ordered = np.ones(len(order)) if self.weights is None else self.weights[order]
        times = None if self.times is None else np.minimum.reduceat(self.times[order], starts)
        first = self.take(order[starts])
        return replace(first, times=times, weights=np.add.reduceat(ordered, starts))

    def hold_out(self, validation: KgeValidation, generator: np.random.Generator) -> TripleSplit:
        """Set distinct triples apart for validation.

        Args:
            validation: how many, of which relations, at random or the latest. "Latest" is by a triple's FIRST time:
                nothing of it lies before the time that it is asked for.
            generator: source of the random choice.

        Returns:
            The split: no triple of `valid` is in `train`, and no other triple between its two ends either, whatever its
            relation and direction: a pair that was clicked and bought is held out as both. `test` is empty.

        Raises:
            ValueError: if the validation names a relation that is not there.
        """
        if unknown := [name for name in validation.relations or () if name not in self.relation_names]:
            raise ValueError(f"validation.relations names {unknown}, but there are {list(self.relation_names)}")
        first = first_positions(self)
        held_out = []
        present = np.bincount(self.relations[first], minlength=len(self.relation_names))
        chosen = [
            number
            for number, name in enumerate(self.relation_names)
            if present[number] and (validation.relations is None or name in validation.relations)
        ]
        quota = validation.num_edges // max(1, len(chosen))
        for number in chosen:
            positions = first[self.relations[first] == number]
            size = min(quota, int(len(positions) * validation.max_fraction))
            if validation.choose == "latest" and self.times is not None and self.times[positions[0]] != self.NO_TIME:
                times = first_times(self, number)
                held_out.append(positions[np.argsort(times, kind="stable")[len(times) - size :]])
            else:
                held_out.append(generator.choice(positions, size=size, replace=False))
        valid = replace(self, weights=None).take(np.sort(_concatenate(held_out)).astype(np.intp))
        joined = are_joined(self, valid)
        num_others = int(np.count_nonzero(joined)) - int(np.count_nonzero(are_among(self, valid)))
        if num_others:
            logger.info(
                "validation: %d triples are held out; %d of other relations between the same ends are left out of training, as "
                "they would tell",
                len(valid),
                num_others,
            )
        return TripleSplit(train=self.take(~joined), valid=valid, test=valid.take(slice(0)))

    def __len__(self) -> int:
        return len(self.heads)

    def __repr__(self) -> str:
        counts = np.bincount(self.relations, minlength=len(self.relation_names))
        parts = [f"{name}={count}" for name, count in self.num_nodes.items()]
        if len(self.relation_names) > 8:
            parts.append(f"{len(self.relation_names)} relations={len(self)}")
        else:
            parts += [
                f"({self.ends[name][0]}, {name}, {self.ends[name][1]})={count}"
                for name, count in zip(self.relation_names, counts, strict=True)
            ]
        return f"TripleSet({', '.join(parts)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TripleSplit:
    """Triples to learn from, to choose by and to report on: three sets of one vocabulary, no triple in two of them.

    Attributes:
        train: what is learned from.
        valid: what configurations and stopping times are chosen by.
        test: what is reported, once.
    """

    train: TripleSet
    valid: TripleSet
    test: TripleSet

    def __post_init__(self) -> None:
        for name, other in (("valid", self.valid), ("test", self.test)):
            if (other.relation_names, other.ends, other.num_nodes) != (
                self.train.relation_names,
                self.train.ends,
                self.train.num_nodes,
            ):
                raise ValueError(f"{name} counts in another vocabulary than train: {other} beside {self.train}")

    @classmethod
    def from_files(cls, *, train: str | Path, valid: str | Path | None = None, test: str | Path | None = None) -> Self:
        """Read tab-separated head, relation, tail lines, plain or compressed (.gz), into one vocabulary.

        Entities and relations are numbered in the order of train, valid, test. An entity that only valid or test has
        gets a number (and an untrained row) too, so that everyone ranks among the same candidates.

        Args:
            train: triples to learn from.
            valid: triples to choose by; None for none.
            test: triples to report on; None for none.

        Returns:
            The split, with one node type, "entity".

        Raises:
            ValueError: if a line does not have three non-empty fields, or a triple stands in the files twice; the
                message names file and line.
            FileNotFoundError: if there is no such file.
        """
        paths = [None if path is None else Path(path) for path in (train, valid, test)]
        found = TextTriples.read([path for path in paths if path is not None])
        everything = TripleSet(
            heads=found.heads,
            relations=found.relations,
            tails=found.tails,
            relation_names=found.relation_names,
            ends=dict.fromkeys(found.relation_names, (_ENTITY, _ENTITY)),
            num_nodes={_ENTITY: len(found.entity_ids)},
            ids={_ENTITY: found.entity_ids},
        )
        pieces = (everything.take(slice(begin, end)) for begin, end in itertools.pairwise(found.bounds))
        parts = [everything.take(slice(0)) if path is None else next(pieces) for path in paths]
        return cls(train=parts[0], valid=parts[1], test=parts[2])

    def fingerprint(self) -> str:
        """Give the sha256 (hex) of all that a training reads of it: columns, vocabulary and external ids."""
        digest = hashlib.sha256()
        for part in self:
            vocabulary = [part.relation_names, sorted(part.ends.items()), sorted(part.num_nodes.items()), sorted(part.ids)]
            digest.update(json.dumps([len(part), part.times is not None, vocabulary]).encode())
            optional = (column for column in (part.times, part.weights) if column is not None)
            for column in (part.heads, part.relations, part.tails, *optional):
                digest.update(np.ascontiguousarray(column).data)
        for _, ids in sorted(self.train.ids.items()):
            digest.update(json.dumps(ids.to_pylist()).encode())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[TripleSet]:
        return iter((self.train, self.valid, self.test))

    def __repr__(self) -> str:
        return f"TripleSplit(train={len(self.train)}, valid={len(self.valid)}, test={len(self.test)}, of {self.train})"


def _check_range(name: str, column: NDArray[np.int32], sizes: NDArray[np.int64] | np.int64) -> None:
    outside = (column < 0) | (column >= sizes)
    if outside.any():
        position = int(np.argmax(outside))
        size = int(np.broadcast_to(sizes, column.shape)[position])
        raise ValueError(f"{name}[{position}] is {column[position]}, outside its vocabulary of {size}")


def _concatenate(columns: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(columns) if columns else np.empty(0, dtype=np.int32)


def _repetitions(relation: str, weights: Tensor | None) -> NDArray[np.float64] | None:
    """Give how often each edge of a weighted relation stands there; the store holds finite weights only."""
    if weights is None:
        return None
    column = weights.numpy().astype(np.float64)
    negative = column < 0
    if negative.any():
        raise ValueError(
            f"relation {relation!r}: {int(negative.sum())} of {len(column)} edges have a negative weight, such as "
            f"{column[negative][0]:g}. An edge's weight says how often it stands there: leave such edges out of the view, or "
            "load them as a relation of their own"
        )
    return column
