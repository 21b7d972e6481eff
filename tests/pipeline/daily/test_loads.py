"""A day's rows come from files or from a table that lies elsewhere, and are the same."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from multifacet.graphdb import GraphStore
from multifacet.inputs import ConfigurationError
from multifacet.pipeline.daily import loads
from multifacet.pipeline.daily.config import Pipeline
from multifacet.pipeline.daily.history import History
from multifacet.pipeline.daily.reading import read_pipeline

FIRST = dt.date(2025, 1, 1)
FILES = 'files = "events/{day}.parquet"'
ADDRESS = """address = "delta:lake/events"
conditions = ["shown_at >= {day}", "shown_at < {next_day}", "clicked = 1"]"""


def edges_of(pipeline: Pipeline) -> list[tuple[object, ...]]:
    with GraphStore.open(pipeline.store.path, read_only=True) as store:
        rows = store.sql("SELECT src_id, dst_id, time FROM edges_clicks ORDER BY ALL").to_pylist()
        return [tuple(row.values()) for row in rows]


def bring(pipeline: Pipeline, day: dt.date) -> int:
    result = loads.load(pipeline, day, [].append)
    return int(result["loads"][0]["loaded"])


def test_a_table_brings_what_files_bring(write_shop: Callable[..., Path], events: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra `lake` is not installed")
    by_files = read_pipeline(write_shop("files"))
    by_address = read_pipeline(write_shop("address", **{FILES: ADDRESS, 'where = "clicked = 1"\n': ""}))
    lake = by_address.store.path.parent / "lake" / "events"
    days = [FIRST + dt.timedelta(days=number) for number in range(3)]
    for day in days:
        deltalake.write_deltalake(lake, pd.read_parquet(events / f"{day}.parquet"), mode="append")
        assert bring(by_address, day) == bring(by_files, day) > 0
        assert bring(by_address, day) == 0
    assert edges_of(by_address) == edges_of(by_files)


def test_a_day_is_done_until_its_table_has_another_file(write_shop: Callable[..., Path], events: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra `lake` is not installed")
    pipeline = read_pipeline(write_shop(**{FILES: ADDRESS, 'where = "clicked = 1"\n': ""}))
    lake = pipeline.store.path.parent / "lake" / "events"
    whole = pd.read_parquet(events / f"{FIRST}.parquet")
    deltalake.write_deltalake(lake, whole.iloc[:100])
    bring(pipeline, FIRST)
    key = loads.fingerprint(pipeline, FIRST)
    assert loads.fingerprint(pipeline, FIRST) == key
    assert not loads.is_done(pipeline, History(pipeline.folder), FIRST, key)
    deltalake.write_deltalake(lake, whole.iloc[100:], mode="append")
    assert loads.fingerprint(pipeline, FIRST) != key
    assert bring(pipeline, FIRST) > 0


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (f"{FILES}\naddress = 'delta:lake'", "expected files or an address"),
        (f"{FILES}\nconditions = ['clicked = 1']", "conditions, query and options are of an address"),
        ("address = 'delta:lake'", "where is of files"),
    ],
)
def test_what_does_not_go_together(write_shop: Callable[..., Path], after: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_pipeline(write_shop(**{FILES: after}))
