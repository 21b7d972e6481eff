"""A writer that is killed at any moment leaves only whole batches."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

from benchmarks.graph.graph_crash import EDGES_PER_BATCH, MOMENTS, examine, kill_writers
from multifacet.graphdb.storage.edge_storage import EdgeStorage
from multifacet.graphdb.storage.layout import edge_table

pytestmark = pytest.mark.slow

#: `python -m benchmarks graph_crash` kills 100; so does this test with MULTIFACET_KILLS=100.
NUM_KILLS = int(os.environ.get("MULTIFACET_KILLS", "12"))


def test_kill_leaves_whole_batches(tmp_path: Path, edge_log: EdgeStorage) -> None:
    path = tmp_path / "g.duckdb"
    outcomes = list(kill_writers(path, NUM_KILLS, seed=0, edge_log=edge_log))
    assert [fault for outcome in outcomes for fault in outcome.faults] == []
    assert {outcome.hit for outcome in outcomes} >= set(MOMENTS)
    batches = [outcome.batches for outcome in outcomes]
    assert batches == sorted(batches)
    assert batches[-1] > 0
    if edge_log == "parquet":
        return
    # The examination tells a torn batch: it must not be one that cannot fail.
    with duckdb.connect(str(path)) as connection:
        rowid = f"(SELECT min(rowid) FROM {edge_table('clicks')})"
        assert connection.execute(f"DELETE FROM {edge_table('clicks')} WHERE rowid = {rowid}").fetchall() == [(1,)]
    _, faults = examine(path, batches[-1])
    assert any(f"'edges': {EDGES_PER_BATCH - 1}" in fault for fault in faults)
