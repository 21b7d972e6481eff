"""What the tests of the graph store share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.storage import EdgeStorage

DAY = dt.datetime(2026, 1, 1)


@pytest.fixture
def schema() -> GraphSchema:
    return GraphSchema(
        nodes=(
            NodeType(name="user", properties={"age": "INTEGER", "country": "VARCHAR"}),
            NodeType(name="pin"),
            NodeType(name="category", id_type="string"),
        ),
        relations=(
            Relation(src="user", name="clicks", dst="pin"),
            Relation(src="user", name="buys", dst="pin", surface="offsite", weighted=True),
            Relation(src="pin", name="in", dst="category", timed=False),
        ),
    )


@pytest.fixture(params=["embedded", "parquet"])
def edge_log(request: pytest.FixtureRequest) -> EdgeStorage:
    """Where edges are kept: whatever a store does, it does with either."""
    storage: EdgeStorage = request.param
    return storage


@pytest.fixture
def create(tmp_path: Path, edge_log: EdgeStorage) -> Iterator[Callable[[GraphSchema], GraphStore]]:
    """Creates stores in a temporary folder, and closes them in the end."""
    stores: list[GraphStore] = []

    def create(schema: GraphSchema) -> GraphStore:
        stores.append(GraphStore.create(tmp_path / f"graph{len(stores)}.duckdb", schema, edge_log=edge_log))
        return stores[-1]

    yield create
    for store in stores:
        store.close()


@pytest.fixture
def store(create: Callable[[GraphSchema], GraphStore], schema: GraphSchema) -> GraphStore:
    return create(schema)


@pytest.fixture
def at() -> Callable[[float], dt.datetime]:
    """The time that many days after a first of January."""
    return lambda days: DAY + dt.timedelta(days=days)
