"""`multifacet snapshot index`: an index answers as exact search does, by each facet's own score, or refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from multifacet.tables import Snapshot, SnapshotTable

pytest.importorskip("faiss", reason="faiss is not installed: pip install 'multifacet[index]'")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users and pins of ten tastes, as triples and as pairs."""
    generator = np.random.default_rng(0)
    users, pins = generator.integers(0, 200, 4000), generator.integers(0, 30, 4000)
    pins = pins * 10 + users % 10
    folder = tmp_path_factory.mktemp("log")
    names = {"user": [f"user {user}" for user in users], "pin": [f"pin {pin}" for pin in pins]}
    pq.write_table(pa.table({"user": names["user"], "item": names["pin"]}), folder / "pairs.parquet")
    lines = [f"{user}\tbuys\t{pin}\n" for user, pin in zip(names["user"], names["pin"], strict=True)]
    (folder / "train.txt").write_text("".join(dict.fromkeys(lines)))
    return folder


def ask(run: Any, *arguments: object) -> Any:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["transe", "rotate", "distmult", "transr"])
def test_links_are_predicted_as_by_all_rows(run: Any, log: Path, tmp_path: Path, model: str) -> None:
    snapshot, index = tmp_path / "kge", tmp_path / "index"
    sets = [f"model={model}", "dim=8", "epochs=3", *(["distance=l2"] if model != "distmult" else [])]
    options = [part for each in sets for part in ("--set", each)]
    ask(run, "pretrain", "kge", "--triples", log / "train.txt", snapshot, *options)
    node_type = Snapshot.load(snapshot).node_types[0]
    asked = ("--relation", "buys") if model == "transr" else ()
    if asked:
        code, _, err = run("snapshot", "index", snapshot, node_type, index)
        assert code == 1
        assert "give --relation, one of buys" in " ".join(err.split())
    built = ask(run, "snapshot", "index", snapshot, node_type, index, *asked)
    assert built["similarity"] == ("dot" if model == "distmult" else "l2")
    assert built["measured"]["recall"] >= 0.9
    query = ("snapshot", "predict", snapshot, "user 7", "--relation", "buys")
    exact, found = ask(run, *query)["predictions"], ask(run, *query, "--index", index)["predictions"]
    assert [each["id"] for each in found][:3] == [each["id"] for each in exact][:3]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in exact], rel=1e-3, abs=1e-4)
    if asked:
        code, _, err = run(*query, "--side", "head", "--index", index)
        assert code == 1
        assert "finds its tails" in " ".join(err.split())


@pytest.mark.slow
def test_items_are_predicted_as_by_all_rows_and_a_new_snapshot_is_refused(run: Any, log: Path, tmp_path: Path) -> None:
    options = ("--set", "dim=8", "--set", "similarity=dot", "--set", "epochs=3")
    for name in ("old", "new"):
        seed = ("--set", f"seed={len(name) + (name == 'new')}")
        ask(run, "pretrain", "contrastive", "--pairs", log / "pairs.parquet", tmp_path / name, *options, *seed)
    built = ask(run, "snapshot", "index", tmp_path / "old", "pin", tmp_path / "index")
    assert built["similarity"] == "dot"
    query = ("snapshot", "predict", tmp_path / "old", "user 7")
    exact, found = ask(run, *query)["predictions"], ask(run, *query, "--index", tmp_path / "index")["predictions"]
    assert [each["id"] for each in found][:5] == [each["id"] for each in exact][:5]
    code, _, err = run("snapshot", "predict", tmp_path / "new", "user 7", "--index", tmp_path / "index")
    assert code == 1
    assert "was made of the snapshot" in " ".join(err.split())


def test_neighbours_come_from_the_index_of_the_searched_type(run: Any, tmp_path: Path) -> None:
    vectors = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    tables = {name: SnapshotTable(ids=pa.array(range(300)), vectors=vectors * scale) for name, scale in (("pin", 1), ("ad", 2))}
    path, index = tmp_path / "snapshot", tmp_path / "index"
    Snapshot.write(path, facet="own", tables=tables)
    code, _, err = run("snapshot", "index", path, "pin", index)
    assert (code, "give --similarity" in err) == (1, True)
    ask(run, "snapshot", "index", path, "pin", index, "--similarity", "l2")
    exact = ask(run, "snapshot", "neighbors", path, "pin", 7, "--similarity", "l2")["neighbors"]
    found = ask(run, "snapshot", "neighbors", path, "pin", 7, "--index", index)["neighbors"]
    assert [each["id"] for each in found] == [each["id"] for each in exact]
    assert [each["l2"] for each in found] == pytest.approx([each["l2"] for each in exact], rel=1e-4)
    assert ask(run, "snapshot", "neighbors", path, "ad", 7, "--among", "pin", "--index", index)["neighbors"]
    code, _, err = run("snapshot", "neighbors", path, "ad", 7, "--index", index)
    assert (code, "the index is of 'pin'" in err) == (1, True)
    code, _, err = run("snapshot", "neighbors", path, "pin", 7, "--index", index, "--similarity", "dot")
    assert (code, "was built to compare by l2" in " ".join(err.replace("│", " ").split())) == (2, True)
    code, out, _ = run("snapshot", "index", path, "pin", index, "--similarity", "l2", "--replace")
    assert code == 0
    assert "recall@10" in out
