"""The command's contract: names, --json, and exit codes 0 for success, 1 for failure, 2 for wrong usage."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tables import Snapshot, SnapshotTable

SCHEMA = """
[nodes.user]
[nodes.pin]
[relations.clicks]
src = "user"
dst = "pin"
timed = false
"""


@pytest.fixture
def store(run: Any, tmp_path: Path) -> Path:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    pq.write_table(pa.table({"src": [1, 1, 2, None], "dst": [7, 7, 8, 9]}), tmp_path / "clicks.parquet")
    path = tmp_path / "graph.duckdb"
    assert run("graph", "init", path, "--schema", tmp_path / "schema.toml")[0] == 0
    assert run("graph", "load", path, tmp_path / "clicks.parquet", "--relation", "clicks")[0] == 0
    return path


def test_a_load_is_reported_and_adds_nothing_the_second_time(run: Any, store: Path, tmp_path: Path) -> None:
    code, out, _ = run("graph", "load", store, tmp_path / "clicks.parquet", "--relation", "clicks", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["read"], report["loaded"], report["already_there"]) == (4, 0, 3)
    assert report["rejected"] == {"src is null": 1}


def test_stats_and_queries_answer_in_json(run: Any, store: Path) -> None:
    code, out, _ = run("graph", "stats", store, "--json")
    assert code == 0
    assert json.loads(out)["relations"]["clicks"]["edges"] == 2
    code, out, _ = run("graph", "query", store, "SELECT src_id, dst_id FROM edges_clicks ORDER BY 1", "--json")
    assert code == 0
    assert json.loads(out) == [{"src_id": 1, "dst_id": 7}, {"src_id": 2, "dst_id": 8}]


def test_a_query_that_writes_fails_with_one_line(run: Any, store: Path) -> None:
    code, out, err = run("graph", "query", store, "DROP VIEW edges_clicks", "--json")
    assert (code, out) == (1, "")
    assert "expected one SELECT" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("graph", "init", "x.duckdb"),
        ("pretrain", "kge", "x.duckdb", "y", "--set", "no-equals-sign"),
    ],
)
def test_wrong_usage_exits_with_2(run: Any, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


def test_a_missing_store_fails_and_says_how_to_make_one(run: Any, tmp_path: Path) -> None:
    code, _, err = run("graph", "stats", tmp_path / "none.duckdb")
    assert code == 1
    assert "multifacet graph init" in err.replace("\n", " ")


def test_recipes_are_listed(run: Any) -> None:
    code, out, _ = run("data", "list", "--json")
    assert code == 0
    assert "completejourney" in {recipe["name"] for recipe in json.loads(out)}


def test_export_writes_the_window(run: Any, store: Path, tmp_path: Path) -> None:
    code, out, _ = run("graph", "export", store, tmp_path / "export", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["files"]["edges_clicks.parquet"] == 2
    table = pq.read_table(tmp_path / "export" / "edges_clicks.parquet")
    assert table.column_names == ["src", "dst"]


def test_a_flipped_byte_in_a_snapshot_is_found_by_file(run: Any, tmp_path: Path) -> None:
    tables = {"pin": SnapshotTable(ids=pa.array([1, 2]), vectors=torch.ones(2, 4))}
    Snapshot.write(tmp_path / "snapshot", facet="kge", tables=tables)
    assert run("snapshot", "verify", tmp_path / "snapshot")[0] == 0
    file = next((tmp_path / "snapshot").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, err = run("snapshot", "verify", tmp_path / "snapshot")
    assert code == 1
    assert file.name in err.replace("\n", "")


def test_a_synthetic_world_becomes_a_store(run: Any, tmp_path: Path) -> None:
    code, out, _ = run(
        *("graph", "synth", tmp_path / "world.duckdb", "--folder", tmp_path / "world", "--json"),
        *("--set", "num_users=200", "--set", "num_pins=300", "--set", "num_advertisers=20", "--set", "num_edges=4000"),
    )
    assert code == 0
    assert sum(load["loaded"] for load in json.loads(out)["loads"]) > 4000
