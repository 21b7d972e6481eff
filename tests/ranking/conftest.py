"""Small worlds for ranking: a store with weeks, stores and purchases, and examples with a planted preference."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.ranking import Examples
from multifacet.tables import Snapshot, SnapshotTable

START = dt.datetime(2026, 1, 5)
WEEK = dt.timedelta(days=7)
DIM = 8


def period_start(period: int) -> dt.datetime:
    return START + WEEK * (period - 1)


@dataclass
class World:
    """A shop world in plain Python; context = 100 * period + shop."""

    num_periods: int = 10
    categories: dict[int, str] = field(default_factory=dict)
    advertisers: dict[int, int] = field(default_factory=dict)
    placements: set[tuple[int, int]] = field(default_factory=set)  # (context, pin)
    purchases: list[tuple[int, int, int, dt.datetime]] = field(default_factory=list)  # (user, context, pin, time)

    @staticmethod
    def period(context: int) -> int:
        return context // 100

    def responses(self) -> dict[tuple[int, int, int], dt.datetime]:
        """(user, context, pin) -> first time."""
        first: dict[tuple[int, int, int], dt.datetime] = {}
        for user, context, pin, time in sorted(self.purchases, key=lambda purchase: purchase[3]):
            if (context, pin) in self.placements:
                first.setdefault((user, context, pin), time)
        return first

    def bought_again_at(self, user: int, pin: int, time: dt.datetime) -> dt.datetime | None:
        later = [t for u, _, p, t in self.purchases if (u, p) == (user, pin) and t > time]
        return min(later, default=None)

    def write(self, path: Path) -> GraphStore:
        schema = GraphSchema(
            nodes=(
                NodeType(name="user"),
                NodeType(name="pin"),
                NodeType(name="advertiser"),
                NodeType(name="category", id_type="string"),
            ),
            relations=(
                Relation(src="user", name="responds", dst="pin"),
                Relation(src="user", name="buys", dst="pin", surface="offsite"),
                Relation(src="pin", name="made_by", dst="advertiser", timed=False),
                Relation(src="pin", name="in", dst="category", timed=False),
            ),
        )
        store = GraphStore.create(path, schema)
        promoted = [p for p in self.purchases if (p[1], p[2]) in self.placements]
        others = [p for p in self.purchases if (p[1], p[2]) not in self.placements]
        for relation, rows in (("responds", promoted), ("buys", others)):
            edges = {(user, pin, time) for user, _, pin, time in rows}
            store.load_edges(relation, _table({"src": 0, "dst": 1, "time": 2}, sorted(edges)))
        store.load_edges("in", _table({"src": 0, "dst": 1}, sorted(self.categories.items())))
        store.load_edges("made_by", _table({"src": 0, "dst": 1}, sorted(self.advertisers.items())))
        periods = [(p, period_start(p), period_start(p + 1)) for p in range(1, self.num_periods + 1)]
        tables: dict[str, pa.Table] = {
            "periods": _table({"period": 0, "start_time": 1, "end_time": 2}, periods),
            "placements": _table(
                {"context": 0, "period": 1, "pin": 2},
                [(context, self.period(context), pin) for context, pin in sorted(self.placements)],
            ),
            "responses": _table(
                {"user": 0, "context": 1, "period": 2, "pin": 3, "time": 4, "bought_again_at": 5},
                [
                    (user, context, self.period(context), pin, time, self.bought_again_at(user, pin, time))
                    for (user, context, pin), time in self.responses().items()
                ],
            ),
            "visits": _table(
                {"user": 0, "context": 1, "period": 2},
                sorted({(user, context, self.period(context)) for user, context, _, _ in self.purchases}),
            ),
            "purchases": _table(
                {"user": 0, "pin": 1, "period": 2},
                sorted({(user, pin, self.period(context)) for user, context, pin, _ in self.purchases}),
            ),
        }
        for name, table in tables.items():
            store.load_table(name, table)
        return store


def _table(columns: Mapping[str, int], rows: list[tuple[Any, ...]]) -> pa.Table:
    # Typed by name, as an empty list has no type of its own.
    types = {"time": pa.timestamp("us"), "bought_again_at": pa.timestamp("us")}
    types |= {"start_time": pa.timestamp("us"), "end_time": pa.timestamp("us")}
    if rows and isinstance(rows[0][-1], str):
        types["dst"] = pa.string()
    arrays = {
        name: pa.array([row[position] for row in rows], types.get(name, pa.int64())) for name, position in columns.items()
    }
    return pa.table(arrays)


def random_world(seed: int, *, num_users: int = 12, num_pins: int = 30, num_purchases: int = 1200) -> World:
    """Users who buy at random in two shops over ten weeks; a third of the pins is promoted in each."""
    generator = np.random.default_rng(seed)
    world = World()
    pins = [1000 + 7 * pin for pin in range(num_pins)]
    world.categories = {pin: f"category {pin % 4}" for pin in pins if pin % 5}
    world.advertisers = {pin: 50 + pin % 3 for pin in pins if pin % 11}
    for period in range(1, world.num_periods + 1):
        for shop in (1, 2):
            for pin in generator.choice(pins, num_pins // 3, replace=False):
                world.placements.add((100 * period + shop, int(pin)))
    for _ in range(num_purchases):
        period = int(generator.integers(1, world.num_periods + 1))
        time = period_start(period) + dt.timedelta(minutes=int(generator.integers(0, 7 * 24 * 60)))
        user, shop = int(generator.integers(0, num_users)), int(generator.integers(1, 3))
        pin = pins[int(num_pins * generator.random() ** 2)]
        world.purchases.append((user, 100 * period + shop, pin, time))
    return world


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(0)


@pytest.fixture(scope="module")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphStore]:
    with world.write(tmp_path_factory.mktemp("world") / "store.duckdb") as store:
        yield store


@pytest.fixture
def write_store(tmp_path: Path) -> Iterator[Callable[[World], GraphStore]]:
    """Write worlds into stores, and close them in the end."""
    stores: list[GraphStore] = []

    def write(world: World) -> GraphStore:
        stores.append(world.write(tmp_path / f"world{len(stores)}.duckdb"))
        return stores[-1]

    yield write
    for store in stores:
        store.close()


@dataclass(frozen=True)
class Planted:
    """A world in which a user responds to pins that point the same way: only the vectors tell."""

    train: Examples
    valid: Examples
    test: Examples
    snapshots: tuple[Snapshot, Snapshot]


def planted_examples(users: np.ndarray, pins: np.ndarray, num_rows: int, generator: np.random.Generator) -> Examples:
    """Draw exposures of known users (ids 0...) and pins (ids 1000...) with vectors."""
    user_idx = generator.integers(0, len(users), num_rows)
    pin_idx = generator.integers(0, len(pins), num_rows)
    dense = generator.normal(size=(num_rows, 3)).astype(np.float32)
    affinity = (users[user_idx] * pins[pin_idx]).sum(1)
    clicked = generator.random(num_rows) < 1 / (1 + np.exp(1.5 - 3 * affinity - 0.5 * dense[:, 0]))
    bought = generator.random(num_rows) < 1 / (1 + np.exp(0.5 - 2 * affinity))
    known = clicked & (generator.random(num_rows) < 0.8)
    rate = np.full(num_rows, 0.1, dtype=np.float32)
    return Examples(
        user_id=user_idx,
        pin_id=1000 + pin_idx,
        advertiser_id=pin_idx % 5,
        context=np.zeros(num_rows, dtype=np.int32),
        period=np.ones(num_rows, dtype=np.int32),
        dense=dense,
        ctr_label=clicked.astype(np.float32),
        cvr_label=np.where(known, bought, np.nan).astype(np.float32),
        sampling_rate=np.where(clicked, np.float32(1), rate),
        negative_rate=rate,
        dense_names=("first", "second", "third"),
        metadata={"world": "planted"},
    )


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    generator = np.random.default_rng(1)
    users, pins, advertisers = (generator.normal(size=(n, DIM)) / DIM**0.25 for n in (400, 600, 5))
    folder = tmp_path_factory.mktemp("planted")

    def snapshot(facet: str, noise: float) -> Snapshot:
        def table(first_id: int, vectors: np.ndarray) -> SnapshotTable:
            noisy = vectors + noise * generator.normal(size=vectors.shape)
            ids = pa.array(np.arange(first_id, first_id + len(vectors)))
            return SnapshotTable(ids=ids, vectors=torch.from_numpy(noisy).float())

        tables = {"user": table(0, users), "pin": table(1000, pins), "advertiser": table(0, advertisers)}
        return Snapshot.write(folder / facet, facet=facet, tables=tables)

    return Planted(
        train=planted_examples(users, pins, 4000, generator),
        valid=planted_examples(users, pins, 2000, generator),
        test=planted_examples(users, pins, 4000, generator),
        snapshots=(snapshot("contrastive", 0.1), snapshot("kge", 0.3)),
    )
