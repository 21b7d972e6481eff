"""A small shop whose users like items of their own taste, as a file of events a day, and a pipeline over it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.reading import read_pipeline

FIRST = dt.date(2025, 1, 1)
DAYS = 24

PIPELINE = """
[store]
path = "shop.duckdb"
schema = "schema.toml"

[[load]]
relation = "clicks"
files = "events/{day}.parquet"
src = "user"
dst = "item"
time = "shown_at"
where = "clicked = 1"

[facets.contrastive]
kind = "contrastive"
warm_window_days = 7
settings = { dim = 8, epochs = 2, batch_size = 64, num_uniform = 16, num_degree = 16, validation = { num_queries = 0 } }

[facets.kge]
kind = "kge"
every_days = 3
settings = { model = "distmult", dim = 8, epochs = 2, batch_size = 64, num_uniform = 16, validation = { num_edges = 0 } }

[ranker]
train_days = 8
validate_days = 2
evaluate_days = 2
settings = { dim = 8, max_epochs = 4, batch_size = 128, hidden = [16, 8], upper_lr = 0.01 }

[ranker.examples]
files = "events/*.parquet"

[ranker.examples.columns]
user = "user"
pin = "item"
time = "shown_at"
click = "clicked"
dense = ["price"]

[gates]
calibration_stop = 2.0

[evaluate]
num_resamples = 20
"""
SCHEMA = """
[nodes.user]
id_type = "string"

[nodes.pin]
id_type = "string"

[relations.clicks]
src = "user"
dst = "pin"
"""


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one Parquet file a day."""
    folder = tmp_path_factory.mktemp("events")
    generator = np.random.default_rng(0)
    num_rows = 260
    for number in range(DAYS):
        day = FIRST + dt.timedelta(days=number)
        users, items = generator.integers(0, 60, num_rows), generator.integers(0, 40, num_rows)
        logit = 3.0 * (users % 4 == items % 4) - 2.0
        seconds = np.sort(generator.integers(0, 86_400, num_rows))
        pd.DataFrame(
            {
                "user": [f"user {user}" for user in users],
                "item": [f"sku-{item}" for item in items],
                "shown_at": pd.Timestamp(day) + pd.to_timedelta(seconds, unit="s"),
                "price": generator.lognormal(0, 1, num_rows).round(2),
                "clicked": (generator.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(int),
            }
        ).to_parquet(folder / f"{day}.parquet")
    return folder


@pytest.fixture
def write_shop(events: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the pipeline into a folder of its own, with changes of its text."""

    def write(name: str = "shop", **changes: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "events").unlink(missing_ok=True)
        (folder / "events").symlink_to(events)
        (folder / "schema.toml").write_text(SCHEMA)
        text = PIPELINE
        for before, after in changes.items():
            text = text.replace(before, after)
        (folder / "pipeline.toml").write_text(text)
        return folder / "pipeline.toml"

    return write


@pytest.fixture
def shop(write_shop: Callable[..., Path]) -> Pipeline:
    """The pipeline."""
    return read_pipeline(write_shop())


class Silent:
    """Is told of what runs, and notes it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[tuple[str, bool]] = []

    def started(self, name: str) -> None:
        self.begun.append(name)

    def progressed(self, name: str, message: str) -> None:
        pass

    def finished(self, stage: Any) -> None:
        self.done.append((stage.name, stage.reused))


@pytest.fixture
def silent() -> Silent:
    """A watcher."""
    return Silent()
