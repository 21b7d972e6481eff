"""Mapping in memory gives what joins give: the same idx, edges and reports."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation, mapping
from multifacet.graphdb.idindex import IdIndex
from multifacet.graphdb.schema import IdType


@settings(max_examples=50, deadline=None)
@given(
    known=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30),
    batches=st.lists(st.lists(st.integers(-3, 40) | st.integers(-(2**63), 2**63 - 1), max_size=60), max_size=3),
)
def test_an_index_is_a_dictionary(known: list[int], batches: list[list[int]]) -> None:
    index = IdIndex(np.array(known, np.int64), np.arange(len(known), dtype=np.int32), len(known))
    wanted = {identifier: idx for idx, identifier in enumerate(known)}
    for batch in batches:
        for identifier in batch:
            wanted.setdefault(identifier, len(wanted))
        idx = np.empty(len(batch), np.int32)
        index.add(np.array(batch, np.int64), idx)
        assert idx.tolist() == [wanted[identifier] for identifier in batch]
    assert len(index) == len(wanted)
    assert [*known, *index.new_ids.tolist()] == list(wanted)


def test_an_index_grows() -> None:
    ids = np.random.default_rng(0).permutation(60_000) * 2**32
    index = IdIndex(ids[:10], np.arange(10, dtype=np.int32), 10)
    idx = np.empty(len(ids), np.int32)
    index.add(ids, idx)
    assert idx.tolist() == list(range(len(ids)))
    assert len(IdIndex(np.array([5, 5]), np.array([0, 1], np.int32), 2)) == 1  # what tells that hashes collide


@pytest.mark.parametrize("id_type", ["int64", "string"])
@pytest.mark.parametrize("relation", ["buys", "follows"])
def test_both_ways_map_alike(monkeypatch: pytest.MonkeyPatch, id_type: IdType, relation: str) -> None:
    schema = GraphSchema(
        nodes=(NodeType(name="user", id_type=id_type), NodeType(name="pin")),
        relations=(
            Relation(src="user", name="buys", dst="pin", weighted=True, duplicates="last"),
            Relation(src="user", name="follows", dst="user", weighted=True),
        ),
    )
    generator = np.random.default_rng(2)
    seen: list[Any] = []
    for min_rows in (1, 10**9):
        monkeypatch.setattr(mapping, "MIN_ROWS_IN_MEMORY", min_rows)
        generator = np.random.default_rng(2)
        with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder) / "g.duckdb", schema) as store:
            store.load_nodes("user", pa.table({"id": pa.array([5, 3, -7], pa.int64())}))
            store.forget("user", "3" if id_type == "string" else 3)
            for _ in range(2):
                src = pa.array([*generator.integers(-20, 20, 300).tolist(), None])
                table = pa.table(
                    {
                        "src": src,
                        "dst": pa.array(generator.integers(-20, 20, 301)),
                        "time": [dt.datetime(2026, 1, 1 + int(day)) for day in generator.integers(0, 3, 301)],
                        "weight": generator.random(301),
                    }
                )
                report = store.load_edges(relation, table)
                seen.append((report.loaded, report.already_there, dict(report.created_nodes), dict(report.rejected)))
            seen.append(
                [
                    store.sql(f"FROM {name} ORDER BY ALL").to_pydict()
                    for name in ("nodes_user", "nodes_pin", f"edges_{relation}")
                ]
            )
    assert seen[:3] == seen[3:]
