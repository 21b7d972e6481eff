"""The command's contract: names, --json, and exit codes 0 for success, 1 for failure, 2 for wrong usage."""

import importlib.metadata
import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from multifacet.graphdb import Feed
from multifacet.pipeline.terminal.training import TrainingDisplay
from multifacet.tables import Snapshot, SnapshotTable
from multifacet.training import Checkpoint, StepProgress

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


def test_the_version_is_the_package_s(run: Any) -> None:
    assert run("--version") == (0, f"multifacet {importlib.metadata.version('multifacet')}\n", "")


def test_a_load_is_reported_and_adds_nothing_the_second_time(run: Any, store: Path, tmp_path: Path) -> None:
    code, out, _ = run("graph", "load", store, tmp_path / "clicks.parquet", "--relation", "clicks", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["read"], report["loaded"], report["already_there"]) == (4, 0, 3)
    assert report["rejected"] == {"src is null": 1}


def test_a_folder_is_loaded_by_conditions(run: Any, store: Path, tmp_path: Path) -> None:
    for day in ("2026-11-01", "2026-11-02"):
        folder = tmp_path / "lake" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"src": [5], "dst": [int(day[-2:])]}), folder / "part.parquet")
    lake = ("graph", "load", store, tmp_path / "lake", "--relation", "clicks")
    code, out, _ = run(*lake, "--where", "day >= '2026-11-02'", "--json")
    assert (code, json.loads(out)["read"], json.loads(out)["loaded"]) == (0, 1, 1)
    assert run(*lake, "--where", "day like 3")[0] == 1
    assert run(*lake, "--query", "SELECT 1")[0] == 1
    assert run(*lake, tmp_path / "clicks.parquet", "--where", "day = 1")[0] == 2
    assert run(*lake, "--option", "region")[0] == 2


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


def test_a_feed_is_written_once_and_told(run: Any, store: Path, tmp_path: Path) -> None:
    told = [run("graph", "feed", store, "--to", tmp_path / "feed", "--shards", "2", "--json") for _ in range(2)]
    assert [code for code, _, _ in told] == [0, 0]
    document = json.loads(told[0][1])
    assert json.loads(told[1][1]) == document
    assert (document["shards"], sum(document["edges"].values())) == (2, 2)
    assert document["fingerprint"] == Feed.open(tmp_path / "feed").fingerprint
    code, _, err = run("graph", "feed", store, "--to", tmp_path / "feed", "--shards", "3")
    assert code == 1
    assert "holds another feed" in err.replace("\n", " ")


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


def test_names_are_printed_as_they_are(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "[red]a[/red] [b]"
    folder.mkdir(parents=True)
    (folder / "schema.toml").write_text(SCHEMA)
    store = folder / ("long " * 30).strip()
    code, out, _ = run("graph", "init", store, "--schema", folder / "schema.toml")
    assert (code, out) == (0, f"created {store}\n")
    code, _, err = run("graph", "stats", folder / "none")
    assert code == 1
    assert "[red]a[/red] [b]" in err


def test_a_synthetic_world_becomes_a_store(run: Any, tmp_path: Path) -> None:
    code, out, _ = run(
        *("graph", "synth", tmp_path / "world.duckdb", "--folder", tmp_path / "world", "--json"),
        *("--set", "num_users=200", "--set", "num_pins=300", "--set", "num_advertisers=20", "--set", "num_edges=4000"),
    )
    assert code == 0
    assert sum(load["loaded"] for load in json.loads(out)["loads"]) > 4000


SMALL_KGE = ("--set", "dim=4", "--set", "epochs=2", "--set", 'validation={"num_edges":0}')


@pytest.mark.slow
def test_pretraining_goes_on_after_ctrl_c_and_a_later_one_starts_warm(
    run: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_at_the_first_step(self: TrainingDisplay, progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (0, 1):
            signal.raise_signal(signal.SIGINT)

    arguments = ("pretrain", "kge", store, tmp_path / "first", *SMALL_KGE)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingDisplay, "on_step", interrupt_at_the_first_step)
        code, _, err = run(*arguments, "--set", "batch_size=2")
    assert code == 130
    assert "writing a checkpoint" in err
    assert not (tmp_path / "first").exists()
    assert Checkpoint.load(tmp_path / "first.checkpoint").fields["position"]["step"] > 0
    code, _, err = run(*arguments, "--set", "batch_size=2")
    assert code == 1
    assert "--resume" in err
    code, _, err = run(*arguments, "--set", "batch_size=2", "--resume", "--set", "lr=0.7")
    assert code == 1
    assert "config.lr: 0.2 there, 0.7 here" in err.replace("\n", " ")
    assert run(*arguments, "--set", "batch_size=2", "--resume")[0] == 0
    assert not (tmp_path / "first.checkpoint").exists()
    assert run("pretrain", "kge", store, tmp_path / "whole", *SMALL_KGE, "--set", "batch_size=2")[0] == 0
    assert Snapshot.load(tmp_path / "whole").fingerprint == Snapshot.load(tmp_path / "first").fingerprint

    code, out, _ = run("pretrain", "kge", store, tmp_path / "second", *SMALL_KGE, "--warm-start", tmp_path / "first", "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["drift"]["pin"]["num_matched"] == 2
    code, out, _ = run("snapshot", "diff", tmp_path / "first", tmp_path / "second", "--json")
    assert code == 0
    assert json.loads(out)["tables"] == json.loads(json.dumps(dict(Snapshot.load(tmp_path / "second").metrics["drift"])))
    code, out, _ = run("snapshot", "diff", tmp_path / "first", tmp_path / "second")
    assert code == 0
    assert "user" in out


def test_an_option_of_a_warm_start_without_one_is_wrong_usage(run: Any, store: Path, tmp_path: Path) -> None:
    assert run("pretrain", "contrastive", store, tmp_path / "out", "--pull", "1")[0] == 2


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_neighbours_are_listed_by_external_id(run: Any, tmp_path: Path, backend: str) -> None:
    pins = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    tables = {
        "pin": SnapshotTable(ids=pa.array([10, 20, 30, 40]), vectors=pins),
        "user": SnapshotTable(ids=pa.array(["ann"]), vectors=torch.tensor([[0.0, 2.0]])),
    }
    path = tmp_path / "snapshot"
    Snapshot.write(path, facet="kge", tables=tables)
    code, out, _ = run("snapshot", "neighbors", path, "pin", "10", "-k", "2", "--backend", backend, "--json")
    assert code == 0
    assert [row["id"] for row in json.loads(out)["neighbors"]] == [20, 30]
    code, out, _ = run("snapshot", "neighbors", path, "user", "ann", "--among", "pin", "--similarity", "dot", "--json")
    assert code == 0
    assert json.loads(out)["neighbors"][0] == {"id": 30, "dot": 2.0}
    assert len(json.loads(out)["neighbors"]) == 4
    code, _, err = run("snapshot", "neighbors", path, "pin", "99")
    assert code == 1
    assert "no pin with the id 99" in err
    code, out, _ = run("snapshot", "neighbors", path, "pin", "10", "-k", "1")
    assert code == 0
    assert "20" in out


@pytest.mark.slow
def test_a_search_keeps_its_trials_in_the_snapshot(run: Any, tmp_path: Path) -> None:
    sizes = [f"num_{name}={count}" for name, count in (("users", 100), ("pins", 80), ("advertisers", 5), ("edges", 2000))]
    synth = ("graph", "synth", tmp_path / "world.duckdb", "--folder", tmp_path / "world")
    assert run(*synth, *(part for size in sizes for part in ("--set", size)))[0] == 0
    (tmp_path / "out").mkdir()
    command = ("pretrain", "kge", tmp_path / "world.duckdb", tmp_path / "out" / "found", "--set", "dim=8", "--set", "epochs=9")
    search = ("--search", "0.03", "--search-seeds", "1", "--try", "lr=[1e-9, 0.5]", "--try", "l2=0.001..0.1")
    code, out, err = run(*command, *search, "--json")

    assert code == 0, err
    found = json.loads(out)["metrics"]["search"]
    assert found["minutes"] == 0.03
    assert {trial["values"]["lr"] for trial in found["trials"]} == {1e-9, 0.5}
    # Later rounds may go beyond an end at which the best lay.
    first = [trial for trial in found["trials"] if trial["round"] == 0]
    assert all(0.00099 <= trial["values"]["l2"] <= 0.101 for trial in first), first
    assert len(found["seeds"]) == 1
    assert "trial of" in err
    snapshot = Snapshot.load(tmp_path / "out" / "found")
    assert snapshot.config["lr"] == found["best"]["values"]["lr"]
    assert snapshot.config["epochs"] == found["best"]["epochs"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["found"]
    again = (*command[:3], tmp_path / "out" / "again")
    assert run(*again, "--try", "lr=[1]")[0] == 2
    assert run(*again, "--search", "1", "--try", "lr=1")[0] == 2
    assert run(*again, "--search", "1", "--warm-start", tmp_path / "out" / "found")[0] == 2


def test_a_search_of_plain_triples_and_pairs_says_what_it_found(run: Any, tmp_path: Path) -> None:
    pairs = [(f"u{user}", f"i{item}") for user in range(40) for item in range(20) if (user + item) % 2 == 0]
    (tmp_path / "pairs.csv").write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    (tmp_path / "triples.tsv").write_text("".join(f"{user}\tbuys\t{item}\n" for user, item in pairs))
    small = ("--set", "dim=8", "--set", "epochs=9", "--search", "0.03", "--search-seeds", "1")
    for room, plain, file in (("contrastive", "--pairs", "pairs.csv"), ("kge", "--triples", "triples.tsv")):
        code, out, err = run("pretrain", room, plain, tmp_path / file, tmp_path / room, *small)
        assert code == 0, err
        assert "chosen of" in out
        assert "in 1 seeds that chose nothing" in out
        snapshot = Snapshot.load(tmp_path / room)
        assert snapshot.metrics["search"]["best"]["epochs"] == snapshot.config["epochs"]


def test_a_preset_gives_what_is_not_set(run: Any, tmp_path: Path) -> None:
    rows = "".join(f"u{user}\tbuys\ti{user % 5}\n" for user in range(40))
    (tmp_path / "triples.tsv").write_text(rows)
    command = ("pretrain", "kge", "--triples", tmp_path / "triples.tsv")
    small = ("--set", "dim=8", "--set", "epochs=1")
    assert run(*command, tmp_path / "rotate", "--preset", "rotate", *small)[0] == 0
    config = Snapshot.load(tmp_path / "rotate").config
    assert (config["model"], config["dim"], config["margin"]) == ("rotate", 8, 6.0)
    assert run(*command, tmp_path / "auto", "--preset", "auto", *small)[0] == 0
    assert Snapshot.load(tmp_path / "auto").config["full_softmax"] is not None
    assert run(*command, tmp_path / "twice", "--preset", "rotate", "--set", "preset=transe")[0] == 2
    assert run(*command, tmp_path / "none", "--preset", "best")[0] == 1
