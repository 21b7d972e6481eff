"""A planted graph: users and pins in groups, pins of two advertisers a group."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from multifacet.graphdb import GraphSchema, GraphStore, GraphView, NodeType, Relation

NUM_GROUPS, USERS, PINS = 6, 12, 20
START_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000


@pytest.fixture(scope="session")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphView]:
    """Each user clicks 12 of its group's 20 pins, one a day, and buys the first 4 of them a day later."""
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser", id_type="string")),
        relations=(
            Relation(src="user", name="clicks", dst="pin"),
            Relation(src="user", name="buys", dst="pin", surface="offsite"),
            Relation(src="pin", name="made_by", dst="advertiser", timed=False),
        ),
    )
    generator = np.random.default_rng(0)
    users = np.arange(NUM_GROUPS * USERS)
    pins = np.stack([generator.permutation(PINS)[:12] for _ in users]) + (users // USERS * PINS)[:, None]
    days = np.broadcast_to(np.arange(12), pins.shape)
    with GraphStore.create(tmp_path_factory.mktemp("planted") / "graph.duckdb", schema) as store:
        store.load_nodes("user", pa.table({"id": users}))
        store.load_nodes("pin", pa.table({"id": np.arange(NUM_GROUPS * PINS + 1)}))  # the last has no edges
        for name, first, lag in (("clicks", 12, 0), ("buys", 4, 1)):
            times = START_US + DAY_US * (days[:, :first] + lag)
            store.load_edges(
                name,
                pa.table(
                    {
                        "src": np.repeat(users, first),
                        "dst": pins[:, :first].ravel(),
                        "time": pa.array(times.ravel()).cast(pa.timestamp("us")),
                    }
                ),
            )
        made = np.arange(NUM_GROUPS * PINS)
        store.load_edges("made_by", pa.table({"src": made, "dst": [f"adv-{pin // PINS}-{pin % 2}" for pin in made]}))
        yield store.view()
