"""A ranker of users who like items of their own taste, its tables, its examples and its release."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import ranking
from multifacet.ranking import Examples
from multifacet.tables import Snapshot, SnapshotTable

DIM = 8
NUM_USERS, NUM_PINS = 60, 40
AS_OF = dt.datetime(2025, 3, 1)


def write_snapshot(path: Path, *, as_of: dt.datetime = AS_OF, long: float = 0.0) -> Snapshot:
    """Tables that tell tastes apart; one number of each row may be far longer than the others."""
    generator = torch.Generator().manual_seed(0)
    tastes = torch.eye(4, DIM) * 2.0
    tables = {
        name: SnapshotTable(
            ids=pa.array(range(size)),
            vectors=tastes[torch.arange(size) % 4]
            + long * torch.eye(DIM)[-1]
            + 0.3 * torch.randn(size, DIM, generator=generator),
        )
        for name, size in (("user", NUM_USERS), ("pin", NUM_PINS))
    }
    return Snapshot.write(path, facet="kge", tables=tables, window={"since": None, "as_of": as_of.isoformat()})


def draw_rows(num_rows: int, seed: int, *, first_pin: int = 0) -> pa.Table:
    """Labelled rows of users who like pins of their taste."""
    generator = np.random.default_rng(seed)
    users, pins = generator.integers(0, NUM_USERS, num_rows), generator.integers(0, NUM_PINS, num_rows)
    likes = 1 / (1 + np.exp(-(3.0 * (users % 4 == pins % 4) - 2.0)))
    return pa.table(
        {
            "user_id": users,
            "pin_id": pins + first_pin,
            "clicked": (generator.random(num_rows) < likes).astype(np.int8),
            "price": generator.random(num_rows).astype(np.float32),
        }
    )


def draw(num_rows: int, seed: int, *, first_pin: int = 0) -> Examples:
    """The same, as examples."""
    rows = draw_rows(num_rows, seed, first_pin=first_pin)
    return ranking.read_examples(rows, ranking.LabelledColumns(dense=("price",)))


@dataclass(frozen=True)
class Trained:
    """A trained ranker."""

    path: Path
    result: Any
    snapshot: Snapshot
    test: Examples


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Trains a ranker whose tables' window ends some days before its examples begin."""

    def make(*, gap_days: float = 0.0, long: float = 0.0, **settings: Any) -> Trained:
        folder = tmp_path_factory.mktemp("ranker")
        snapshot = write_snapshot(folder / "kge", long=long)
        fields = {"features": ("user", "pin"), "facets": ("kge",), "pretrained_facets": ("kge",), "dim": DIM}
        fields |= {"max_epochs": 6, "batch_size": 128, "hidden": (16, 8), "upper_lr": 0.01, "table_lr": 0.05} | settings
        result = ranking.train(draw(4000, 0), draw(1000, 1), ranking.arm_config("pretrained", **fields), snapshots=[snapshot])
        begins = AS_OF + dt.timedelta(days=gap_days)
        ranking.export_model(folder / "model", result, learned=(begins, begins + dt.timedelta(days=7)))
        return Trained(path=folder / "model", result=result, snapshot=snapshot, test=draw(3000, 2))

    return make


@pytest.fixture(scope="session")
def healthy(train: Callable[..., Trained]) -> Trained:
    """A ranker that nothing is wrong with."""
    return train()


def flipped(examples: Examples, share: float) -> Examples:
    """Examples of which a share of the clicks was not counted."""
    kept = np.random.default_rng(0).random(len(examples)) >= share
    return dataclasses.replace(examples, ctr_label=np.where(kept, examples.ctr_label, 0.0).astype(np.float32))
