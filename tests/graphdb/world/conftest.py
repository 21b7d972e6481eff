"""Worlds that several tests look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multifacet.graphdb.world import World, WorldConfig
from multifacet.graphdb.world.config import InteractionName

#: All that a world has, within three months and an odd week.
SMALL = WorldConfig(
    seed=3,
    num_users=300,
    num_pins=500,
    num_advertisers=20,
    num_categories=5,
    num_edges=20_000,
    days=3 * 28 + 10,
    user_churn_per_month=0.1,
    pin_churn_per_month=0.2,
    noise_share=0.2,
    num_visits=1500,
    contexts_per_period=4,
    placements_per_context=30,
)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.generate(SMALL, tmp_path_factory.mktemp("worlds") / "small", num_threads=1)


@pytest.fixture(scope="session")
def steady(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Large enough to measure laws, without churn."""
    config = WorldConfig(
        seed=5,
        num_users=20_000,
        num_pins=10_000,
        num_edges=400_000,
        conversion_share=0.25,
        days=7 * 28,
        drift_per_month=0.1,
        user_churn_per_month=0,
        pin_churn_per_month=0,
        num_visits=0,
    )
    return World.generate(config, tmp_path_factory.mktemp("worlds") / "steady")


@pytest.fixture(scope="session")
def read_edges() -> Callable[[World, InteractionName], pa.Table]:
    """Edges of a relation in the files' order, with the month of their file and whether they are noise."""

    def read(world: World, relation: InteractionName) -> pa.Table:
        parts = []
        for month, file in enumerate(world.edge_files(relation)):
            part = pq.read_table(file)
            is_noise = world.is_noise(relation, month)
            assert len(is_noise) == part.num_rows
            parts.append(part.append_column("month", [np.full(part.num_rows, month)]).append_column("is_noise", [is_noise]))
        return pa.concat_tables(parts)

    return read
