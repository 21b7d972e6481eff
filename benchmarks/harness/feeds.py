"""Feeds of graphs whose degrees follow a power law, of any number of edges over the same nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from multifacet.graphdb import Feed, GraphSchema, GraphStore, NodeType, Relation, write_feed
from multifacet.kge import TripleSet, TripleSplit

__all__ = ["feed_of_split", "power_law_feed"]

_PART: Final = 5_000_000


def power_law_feed(folder: Path, *, num_edges: int, num_users: int, num_pins: int, num_shards: int) -> Feed:
    """Write a feed of users that like pins, both drawn by a power law; pairs that are drawn again count once.

    Args:
        folder: of the store and the feed.
        num_edges: draws.
        num_users: users, all of which are nodes.
        num_pins: pins, likewise.
        num_shards: of the feed.
    """
    relation = Relation(src="user", name="likes", dst="pin", timed=False)
    schema = GraphSchema(nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(relation,))
    generator = np.random.default_rng(0)
    with GraphStore.create(folder / "graph.duckdb", schema, memory_limit="2GB") as store:
        for name, count in (("user", num_users), ("pin", num_pins)):
            store.load_nodes(name, pa.table({"id": np.arange(count)}))
        for first in range(0, num_edges, _PART):
            size = min(_PART, num_edges - first)
            ends = [(count * generator.random(size) ** 2).astype(np.int64) for count in (num_users, num_pins)]
            store.load_edges("likes", pa.table({"src": ends[0], "dst": ends[1]}))
    with GraphStore.open(folder / "graph.duckdb", read_only=True, memory_limit="1GiB") as store:
        return write_feed(store.view(), folder / "feed", num_shards=num_shards)


def feed_of_split(folder: Path, split: TripleSplit, *, num_shards: int) -> Feed:
    """Write a feed of a split's training triples, with its numbers of nodes and relations; relations are called r0, r1, ..."""
    train = split.train
    schema = GraphSchema(
        nodes=tuple(NodeType(name=name) for name in train.num_nodes),
        relations=tuple(
            Relation(src=train.ends[name][0], name=f"r{number}", dst=train.ends[name][1], timed=False)
            for number, name in enumerate(train.relation_names)
        ),
    )
    with GraphStore.create(folder / "graph.duckdb", schema) as store:
        for name, count in train.num_nodes.items():
            store.load_nodes(name, pa.table({"id": np.arange(count)}))
        for number, edges in enumerate(renamed(train).edges().values()):
            store.load_edges(f"r{number}", pa.table({"src": edges.heads, "dst": edges.tails}))
        return write_feed(store.view(), folder / "feed", num_shards=num_shards)


def renamed(triples: TripleSet) -> TripleSet:
    """Give triples whose relations are called r0, r1, ..."""
    names = tuple(f"r{number}" for number in range(len(triples.relation_names)))
    fields: dict[str, Any] = {name: getattr(triples, name) for name in ("heads", "relations", "tails", "num_nodes")}
    ends = {new: triples.ends[old] for new, old in zip(names, triples.relation_names, strict=True)}
    return TripleSet(**fields, relation_names=names, ends=ends)
