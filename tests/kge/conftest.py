"""A planted graph: users and pins in groups, and an advertiser for each group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from multifacet.graphdb import GraphSchema, GraphStore, GraphView, NodeType, Relation

NUM_GROUPS = 5
USERS = PINS = 8  # per group


@pytest.fixture(scope="session")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphView]:
    """Every user clicks 7 of its group's 8 pins; pins of a group are alike (each to itself too), of one advertiser."""
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser", id_type="string")),
        relations=(
            Relation(src="user", name="clicks", dst="pin"),
            Relation(src="pin", name="made_by", dst="advertiser", timed=False),
            Relation(src="pin", name="alike", dst="pin", timed=False),
        ),
    )
    path: Path = tmp_path_factory.mktemp("planted") / "graph.duckdb"
    with GraphStore.create(path, schema) as store:
        store.load_nodes("user", pa.table({"id": np.arange(NUM_GROUPS * USERS) + 1000}))
        store.load_nodes("pin", pa.table({"id": np.arange(NUM_GROUPS * PINS) + 5000}))
        store.load_nodes("advertiser", pa.table({"id": [f"adv-{group}" for group in range(NUM_GROUPS)]}))
        user, pin = np.divmod(np.arange(NUM_GROUPS * USERS * PINS), PINS)
        pin += user // USERS * PINS
        kept = pin % PINS != (3 * user) % PINS
        user, pin = user[kept], pin[kept]
        time = 1_700_000_000_000_000 + 1_000_000 * (7 * user + 13 * pin)
        clicks = pa.table({"src": user + 1000, "dst": pin + 5000, "time": pa.array(time).cast(pa.timestamp("us"))})
        store.load_edges("clicks", clicks)
        pins = np.arange(NUM_GROUPS * PINS)
        store.load_edges("made_by", pa.table({"src": pins + 5000, "dst": [f"adv-{group}" for group in pins // PINS]}))
        left, right = (pins[:, None] + 0 * pins).ravel(), (0 * pins[:, None] + pins).ravel()
        alike = left // PINS == right // PINS
        store.load_edges("alike", pa.table({"src": left[alike] + 5000, "dst": right[alike] + 5000}))
        yield store.view()
