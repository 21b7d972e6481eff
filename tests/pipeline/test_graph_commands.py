"""`multifacet graph`: every command on a small shop, as tables for a reader and as JSON."""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from multifacet.graphdb import GraphSchema, GraphStore
from multifacet.pipeline.commands.graph.asking import degree_ranges
from multifacet.tables import Snapshot, SnapshotTable

SCHEMA = """
[nodes.user]
[nodes.pin]
[nodes.advertiser]
id_type = "string"
[relations.buys]
src = "user"
dst = "pin"
surface = "offsite"
weighted = true
[relations.made_by]
src = "pin"
dst = "advertiser"
timed = false
"""

Run = Callable[..., tuple[int, str, str]]


def day(number: int) -> dt.datetime:
    return dt.datetime(2026, 1, number)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one rejected row, made once."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "schema.toml").write_text(SCHEMA)
    buys = {"src": [1, 1, 1, 2, 2], "dst": [10, 11, 12, 11, 12], "time": [day(n) for n in (1, 2, 3, 4, 5)]}
    pq.write_table(pa.table({**buys, "weight": [1.0, 2.0, 3.0, 4.0, float("nan")]}), folder / "buys.parquet")
    made_by = {"src": [10, 11, 12], "dst": ["acme [red]", "acme [red]", "zenith"]}
    with GraphStore.create(folder / "shop.duckdb", GraphSchema.from_toml(folder / "schema.toml")) as store:
        store.load_edges("made_by", pa.table(made_by))
        store.load_edges("buys", folder / "buys.parquet")
    return folder


@pytest.fixture
def shop(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(built / "shop.duckdb", tmp_path))


@pytest.fixture
def ask(run: Run, shop: Path) -> Callable[..., Any]:
    def call(command: str, *arguments: object) -> Any:
        code, out, err = run("graph", command, shop, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def test_a_load_shows_what_it_rejects_and_where_to_look(run: Run, shop: Path, built: Path) -> None:
    code, out, _ = run("graph", "load", shop, built / "buys.parquet", "--relation", "buys")
    assert code == 0
    assert "weight is not a finite number 1" in out
    assert f"multifacet graph rejected {shop}" in out


def test_neighbors(ask: Callable[..., Any]) -> None:
    rows = ask("neighbors", "user", 1)
    assert [(row["id"], row["time"][:10], row["weight"]) for row in rows] == [
        ("12", "2026-01-03", 3.0), ("11", "2026-01-02", 2.0), ("10", "2026-01-01", 1.0),
    ]  # fmt: skip
    assert [row["id"] for row in ask("neighbors", "user", 1, "--since", "2026-01-02", "--as-of", "2026-01-03")] == ["11"]
    assert [row["id"] for row in ask("neighbors", "pin", 11, "--direction", "out")] == ["acme [red]"]


def test_degrees(ask: Callable[..., Any]) -> None:
    assert ask("degrees", "buys", "--end", "src") == [{"degree": 1, "nodes": 1}, {"degree": 3, "nodes": 1}]
    # Pins that are bought later are not there yet.
    assert ask("degrees", "buys", "--as-of", "2026-01-02") == [{"degree": 1, "nodes": 1}]


def test_common(ask: Callable[..., Any]) -> None:
    assert [(row["relation"], row["id"]) for row in ask("common", "user", 1, 2)] == [("buys", "11")]
    assert ask("common", "user", 1, 2, "--as-of", "2026-01-04") == []


def test_hops(ask: Callable[..., Any]) -> None:
    assert ask("hops", "user", 1, "--hops", 2) == [
        {"hop": 0, "type": "user", "nodes": 1},
        {"hop": 1, "type": "pin", "nodes": 3},
        {"hop": 2, "type": "advertiser", "nodes": 2},
        {"hop": 2, "type": "user", "nodes": 1},
    ]
    assert {row["type"] for row in ask("hops", "user", 1, "--relation", "buys")} == {"user", "pin"}
    assert {row["type"] for row in ask("hops", "pin", 10, "--surface", "onsite")} == {"pin", "advertiser"}


def test_paths(run: Run, shop: Path, ask: Callable[..., Any]) -> None:
    steps = ask("paths", "user", 2, "advertiser", "acme [red]")
    assert [(step["hop"], step["relation"], step["direction"], step["id"]) for step in steps] == [
        (1, "buys", "out", "11"), (2, "made_by", "out", "acme [red]"),
    ]  # fmt: skip
    _, out, _ = run("graph", "paths", shop, "advertiser", "acme [red]", "user", 2)
    assert "advertiser acme [red] <-made_by- pin 11 <-buys- user 2" in out
    _, out, _ = run("graph", "paths", shop, "user", 1, "user", 2, "--max-hops", 1)
    assert "no path within 1 hops" in out


def test_top_advertisers_of_a_user(ask: Callable[..., Any]) -> None:
    expected = [{"type": "advertiser", "id": "acme [red]", "edges": 2}, {"type": "advertiser", "id": "zenith", "edges": 1}]
    assert ask("top", "user", 1, "buys", "made_by") == expected
    assert ask("top", "user", 1, "buys", "made_by", "--as-of", "2026-01-02", "-k", 1) == [{**expected[0], "edges": 1}]
    users = ask("top", "advertiser", "zenith", "made_by^-1", "buys^-1")
    assert users == [{"type": "user", "id": "1", "edges": 1}]


def test_a_query_sees_the_window(ask: Callable[..., Any]) -> None:
    sql = "SELECT count(*) AS n FROM edges_buys"
    assert ask("query", sql) == [{"n": 4}]
    assert ask("query", sql, "--as-of", "2026-01-03") == [{"n": 2}]
    assert ask("query", sql, "--relation", "buys", "--min-degree", "user=2") == [{"n": 3}]


def test_rejected_rows_have_their_file_row_and_reason(run: Run, shop: Path, ask: Callable[..., Any]) -> None:
    document = ask("rejected")
    assert document["reasons"] == [{"target": "buys", "reason": "weight is not a finite number", "rows": 1}]
    (row,) = document["rows"]
    assert (Path(row["file"]).name, row["row"], row["src_or_id"], row["dst"]) == ("buys.parquet", 4, "2", "12")
    assert ask("rejected", "--target", "made_by") == {"reasons": [], "rows": []}
    assert run("graph", "rejected", shop, "--target", "made_by")[1].strip() == "no rejected rows"


def test_the_schema_grows(ask: Callable[..., Any], run: Run, shop: Path) -> None:
    ask("add-node-type", "board", "--id-type", "string", "--property", "title=varchar")
    ask("add-relation", "pin", "on", "board", "--untimed")
    ask("add-property", "pin", "price", "double")
    with GraphStore.open(shop, read_only=True) as store:
        assert store.schema.node("board").properties == {"title": "VARCHAR"}
        assert store.schema.relation("on").timed is False
        assert store.schema.node("pin").properties == {"price": "DOUBLE"}
    code, _, err = run("graph", "add-relation", shop, "pin", "on", "board")
    assert code == 1
    assert "declared twice" in err
    code, _, err = run("graph", "add-property", shop, "pin", "colour", "rainbow")
    assert (code, "expected one of BIGINT" in err) == (1, True)


def test_edges_are_dropped_only_when_it_is_no_rehearsal(ask: Callable[..., Any]) -> None:
    assert ask("drop-before", "2026-01-03", "--dry-run") == {"buys": 2}
    assert ask("drop-before", "2026-01-03") == {"buys": 2}
    assert ask("drop-before", "2026-01-03", "--dry-run") == {"buys": 0}
    assert ask("stats")["relations"]["buys"]["edges"] == 2


def test_a_user_is_forgotten(ask: Callable[..., Any], run: Run, shop: Path) -> None:
    assert ask("forget", "user", 1) == {"buys": 3}
    code, _, err = run("graph", "neighbors", shop, "user", 1)
    assert (code, "there is no user" in err) == (1, True)
    assert ask("query", "SELECT kind, target, edges FROM removals") == [{"kind": "forget", "target": "user", "edges": 3}]


@pytest.mark.parametrize("layout", ["edges", "csc", "safetensors"])
def test_exports_of_a_window(layout: str, ask: Callable[..., Any], tmp_path: Path) -> None:
    document = ask("export", tmp_path / layout, "--layout", layout, "--as-of", "2026-01-03")
    edges = {"edges": "edges_buys.parquet", "csc": "indices_buys.parquet", "safetensors": "graph.safetensors"}[layout]
    # Two edges of each relation: the pin that was bought later is not there yet, nor its maker.
    assert document["files"][edges] == (4 if layout == "safetensors" else 2)
    assert all((tmp_path / layout / name).is_file() for name in document["files"])
    assert len(document["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("neighbors", "user", "anna"), "'anna' is not an id of 'user', whose ids are int64"),
        (("neighbors", "user", 3), "there is no user '3' in the store"),
        (("neighbors", "usr", 1), "unknown node type 'usr', known: ['user', 'pin', 'advertiser']"),
        (("neighbors", "user", 1, "--relation", "made_by"), "no relation goes in or out of 'user' by the name 'made_by'"),
        (("degrees", "bys"), "unknown relation 'bys', known: ['buys', 'made_by']"),
        (("top", "user", 1, "buys", "--surface", "onsite"), "relation 'buys' is not in this view, which has ['made_by']"),
        (("hops", "user", 1, "--hops", 9), "expected 0 to 6 hops, got 9"),
        (("query", "FROM edges_bys"), 'Did you mean "edges_buys"?'),
        (("neighbors", "user", 1, "--since", "yesterday"), "Invalid value for '--since'"),
        (("query", "FROM edges_buys", "--min-degree", "many"), "--min-degree takes a NUMBER or TYPE=NUMBER"),
    ],
)
def test_an_error_says_what_is_wrong(run: Run, shop: Path, arguments: tuple[object, ...], message: str) -> None:
    command, *rest = arguments
    code, out, err = run("graph", command, shop, *rest)
    assert (code, out) == (2 if "--" in message else 1, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_how_files_are_read_is_said_on_the_command_line(run: Run, shop: Path, ask: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "log.dat"
    path.write_text("7|12|1767225600000|2,5\n8|NA|1767225600000|1\n")
    options = [
        "--format",
        "csv",
        "--delimiter",
        "|",
        "--columns",
        "src,dst,time,weight",
        "--null-text",
        "NA",
        "--time-unit",
        "ms",
    ]
    code, _, err = run("graph", "load", shop, path, "--relation", "buys", *options)
    assert code == 1  # nothing could be loaded: a comma is no point
    assert "every row was rejected" in err
    reasons = ask("rejected")["reasons"]
    assert {"target": "buys", "reason": "dst is null", "rows": 1} in reasons
    path.write_text("7|12|1767225600000|2.5\n")
    assert run("graph", "load", shop, path, "--relation", "buys", *options)[0] == 0
    assert ask("query", "SELECT time, weight FROM edges_buys WHERE src_id = 7") == [
        {"time": "2026-01-01 00:00:00", "weight": 2.5}
    ]
    path.write_text("x|12|1767225600000|1\ny|12|1767225600000|1\n9|12|1767225600000|1\n")
    code, _, err = run("graph", "load", shop, path, "--relation", "buys", *options, "--max-rejected", "1")
    assert (code, "more than max_rejected=1" in err) == (1, True)
    assert ask("query", "SELECT count(*) AS n FROM edges_buys WHERE src_id = 9") == [{"n": 0}]
    code, _, err = run("graph", "load", shop, path, "--relation", "buys", "--time-unit", "days")
    assert (code, "'--time-unit'" in err) == (2, True)


def test_a_time_on_the_command_line_can_have_an_offset(ask: Callable[..., Any]) -> None:
    sql = "SELECT count(*) AS n FROM edges_buys"
    assert ask("query", sql, "--as-of", "2026-01-03T02:00:00+02:00") == [{"n": 2}]
    assert ask("query", sql, "--as-of", "2026-01-03T02:00:01+02:00") == [{"n": 3}]


def test_a_store_is_copied_and_its_snapshots_are_named(run: Run, shop: Path, tmp_path: Path) -> None:
    assert run("graph", "backup", shop, tmp_path / "copy.duckdb")[0] == 0
    assert run("graph", "backup", shop, tmp_path / "copy.duckdb")[0] == 1
    for name, ids in (("with", [1, 2]), ("without", [2])):
        table = SnapshotTable(ids=pa.array(ids), vectors=torch.ones(len(ids), 2))
        Snapshot.write(tmp_path / "snapshots" / name, facet="kge", tables={"user": table})
    code, out, _ = run("graph", "forget", shop, "user", 1, "--snapshots", tmp_path / "snapshots")
    assert code == 0
    assert f"the snapshot {tmp_path / 'snapshots' / 'with'} still holds it" in out
    assert "without" not in out


def test_values_in_brackets_are_shown_as_they_are(run: Run, shop: Path) -> None:
    _, out, _ = run("graph", "query", shop, "SELECT DISTINCT dst_id FROM edges_made_by ORDER BY 1")
    assert "acme [red]" in out


def test_degrees_of_a_reader_add_up(run: Run, shop: Path) -> None:
    rows = degree_ranges([0, 1, 2, 3, 4, 700], [9, 5, 4, 3, 2, 1])
    assert sum(row["nodes"] for row in rows) == 24
    assert sum(row["edges"] for row in rows) == 5 + 8 + 9 + 8 + 700
    assert [row["degree"] for row in rows] == ["0", "1", "2 to 3", "4 to 7", "512 to 1,023"]
    assert "2 to 3" in run("graph", "degrees", shop, "buys", "--end", "src")[1]


def test_what_needs_no_tensors_does_not_wait_for_torch(shop: Path, repository: Path) -> None:
    code = (
        "import sys; from multifacet.pipeline import cli; sys.argv = ['multifacet', 'graph', 'top', sys.argv[1], 'user', '1', 'buys']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules, 'slow imports'"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ran = subprocess.run([sys.executable, "-c", code, str(shop)], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
