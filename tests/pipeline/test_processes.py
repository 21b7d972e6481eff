"""`multifacet pretrain` and `train` under torchrun."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.tables import Snapshot
from tests.ranking.conftest import random_world

pytestmark = pytest.mark.slow

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("-m", "multifacet.pipeline.cli"),
)
AGENT = (
    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
    *("--master-addr", "127.0.0.1"),
)
SETTINGS = ("dim=8", "epochs=2", "batch_size=64", "num_uniform=8", "num_degree=0", "seed=3")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")),
        relations=(Relation(src="user", name="clicks", dst="pin", timed=False),),
    )
    path = tmp_path_factory.mktemp("graph") / "graph.duckdb"
    generator = np.random.default_rng(0)
    users = generator.integers(0, 90, 800)
    with GraphStore.create(path, schema) as graph:
        graph.load_nodes("user", pa.table({"id": np.arange(90) + 1000}))
        graph.load_nodes("pin", pa.table({"id": np.arange(60) + 5000}))
        pins = users % 3 + 3 * generator.integers(0, 20, 800)
        graph.load_edges("clicks", pa.table({"src": users + 1000, "dst": pins + 5000}))
    return path


@pytest.mark.parametrize(
    ("facet", "own_settings", "metric", "by_chance"),
    [
        ("kge", ("chunk_size=16",), "filtered_mrr", 0.08),
        ("contrastive", ("history=1", "smoothing=0.5", 'validation={"num_queries": 40, "num_latest": 2}'), "mrr", 0.13),
    ],
)
def test_torchrun_gives_one_snapshot_of_all_processes(
    store: Path, tmp_path: Path, facet: str, own_settings: tuple[str, ...], metric: str, by_chance: float
) -> None:
    settings = [part for setting in (*SETTINGS, *own_settings) for part in ("--set", setting)]
    command = ["pretrain", facet, str(store), str(tmp_path / "shared"), *settings, "--json"]
    ran = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, timeout=170, check=False)

    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)  # one process speaks
    snapshot = Snapshot.load(tmp_path / "shared")
    assert document["fingerprint"] == snapshot.fingerprint
    assert document["metrics"][metric] > by_chance
    assert [snapshot.vectors(name).shape for name in ("user", "pin")] == [(90, 8), (60, 8)]
    assert bool((snapshot.vectors("user") != 0).any(1).all())
    assert snapshot.ids("pin").to_pylist() == list(range(5000, 5060))
    assert (tmp_path / "shared.checkpoint").exists() is False
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_torchrun_trains_from_a_feed(run: Any, store: Path, tmp_path: Path) -> None:
    assert run("graph", "feed", store, "--to", tmp_path / "feed", "--shards", "6", "--hold-out", "40")[0] == 0
    settings = [part for setting in (*SETTINGS, "chunk_size=16", "epochs=4") for part in ("--set", setting)]
    command = ["pretrain", "kge", "--feed", str(tmp_path / "feed"), str(tmp_path / "shared"), *settings, "--json"]
    ran = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, timeout=170, check=False)

    assert ran.returncode == 0, ran.stderr
    snapshot = Snapshot.load(tmp_path / "shared")
    assert json.loads(ran.stdout)["fingerprint"] == snapshot.fingerprint
    assert snapshot.metrics["filtered_mrr"] > 0.08
    assert snapshot.ids("pin").to_pylist() == list(range(5000, 5060))
    assert run("pretrain", "kge", "--feed", tmp_path / "feed", tmp_path / "alone", *settings)[0] == 0
    assert Snapshot.load(tmp_path / "alone").parents == snapshot.parents
    for wrong in (["--search", "1"], ["--triples", "x.tsv"], ["--as-of", "2025-01-01"]):
        assert run("pretrain", "kge", "--feed", tmp_path / "feed", tmp_path / "wrong", *wrong)[0] == 2


def test_two_hosts_train_what_one_does(store: Path, tmp_path: Path) -> None:
    settings = [part for setting in (*SETTINGS, "chunk_size=16") for part in ("--set", setting)]

    def command(name: str) -> list[str]:
        return ["pretrain", "kge", str(store), str(tmp_path / name), *settings, "--json"]

    ran = subprocess.run([*TORCHRUN, *command("one")], capture_output=True, text=True, timeout=170, check=False)
    assert ran.returncode == 0, ran.stderr
    # An agent of torchrun is a host to all that it starts.
    agents = [
        subprocess.Popen(
            [*AGENT, "--node-rank", str(host), "--master-port", str(port), "-m", "multifacet.pipeline.cli", *command("two")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for port in [free_port()]
        for host in (0, 1)
    ]
    answers = [agent.communicate(timeout=170) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], answers
    assert Snapshot.load(tmp_path / "two").fingerprint == Snapshot.load(tmp_path / "one").fingerprint
    assert [bool(out) for out, _ in answers] == [True, False]  # one process of all hosts speaks


def test_a_search_says_that_it_runs_in_one_process(
    run: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run("pretrain", "kge", store, tmp_path / "out", "--search", "1")
    assert code == 2
    assert "--search runs in one process" in " ".join(err.replace("│", " ").split())


def test_torchrun_trains_one_model_that_evaluates_and_publishes(run: Any, tmp_path: Path) -> None:
    random_world(0).write(tmp_path / "store.duckdb").close()
    command = ["train", str(tmp_path / "store.duckdb")]
    options = (
        "--training 3 6 --validation 7 8 --labels-known-before 9 --arm scratch --set dim=4 --set hidden=[8] --set dropout=0"
    )
    options += " --set batch_size=64 --set max_epochs=2 --json"
    logs = ["--log-folder", str(tmp_path / "logs")]
    ran = subprocess.run(
        [*TORCHRUN, *command, str(tmp_path / "shared"), *options.split(), *logs],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)  # one process speaks
    code, out, err = run(*command, tmp_path / "alone", *options.split())
    assert code == 0, err
    assert document["validation"] == pytest.approx(json.loads(out)["validation"], rel=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0][: len(rows)]
    assert not [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name or path.name.startswith(".")]
    files = [{path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in ("shared", "alone")]
    assert files[0] == files[1]
    code, out, err = run("evaluate", tmp_path / "store.duckdb", tmp_path / "shared", "--periods", 9, 10, "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["metrics"]["ctr"]["roc_auc"] <= 1
    code, _, err = run("publish", tmp_path / "shared", tmp_path / "release")
    assert code == 0, err
