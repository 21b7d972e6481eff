"""Pretraining that is killed at any moment and resumed ends with the bits of one that was not."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from multifacet import contrastive, kge
from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.training import Checkpoint, CheckpointError, Lifecycle

pytestmark = pytest.mark.slow

CONFIGS: dict[str, kge.KgeConfig | contrastive.ContrastiveConfig] = {
    "kge": kge.KgeConfig(
        model="transra",
        dim=16,
        epochs=3,
        batch_size=32,
        num_uniform=16,
        num_degree=8,
        validation=kge.KgeValidation(num_edges=40),
    ),
    "contrastive": contrastive.ContrastiveConfig(
        dim=16,
        epochs=5,
        batch_size=64,
        num_uniform=16,
        num_degree=16,
        queue_size=100,
        composed=(contrastive.ComposedTower(node_type="advertiser", through="made_by"),),
        validation=contrastive.ContrastiveValidation(num_queries=20, num_latest=2, min_remaining=2),
    ),
}
NUM_KILLS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="advertiser")),
        relations=(
            Relation(src="user", name="clicks", dst="pin"),
            Relation(src="pin", name="made_by", dst="advertiser", timed=False),
        ),
    )
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("graph") / "graph.duckdb"
    with GraphStore.create(path, schema) as graph:
        users, pins = generator.integers(0, 100, 2000), generator.integers(0, 150, 2000)
        times = pa.array(1_700_000_000_000_000 + 1_000_000 * np.arange(2000)).cast(pa.timestamp("us"))
        graph.load_edges("clicks", pa.table({"src": users, "dst": pins, "time": times}))
        graph.load_edges("made_by", pa.table({"src": np.arange(150), "dst": np.arange(150) % 20}))
    return path


def train(kind: str, store: Path, **life: Any) -> dict[str, torch.Tensor]:
    with GraphStore.open(store, read_only=True) as graph:
        view, config = graph.view(), CONFIGS[kind]
        if isinstance(config, kge.KgeConfig):
            result = kge.train(view, config, lifecycle=Lifecycle(**life))
            return result.vectors | {f"adagrad/{name}": state for name, state in result.adagrad.items()}
        return contrastive.train(view, config, lifecycle=Lifecycle(**life)).vectors


def train_in_a_process(kind: str, store: str, folder: str, every_seconds: float | None) -> None:
    torch.set_num_threads(1)
    life: dict[str, Any] = {}
    if every_seconds is not None:
        life = {"checkpoint": Path(folder) / "checkpoint", "every_seconds": every_seconds, "resume": True}
    save_file(train(kind, Path(store), **life), Path(folder) / "vectors.safetensors")


def start(*arguments: Any) -> BaseProcess:
    # The server imports once; each training is forked from it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multifacet.kge.sampled.trainer", "multifacet.contrastive.trainer.trainer", "graphdb"])
    process = context.Process(target=train_in_a_process, args=arguments)
    process.start()
    return process


def position(folder: Path) -> tuple[int, int]:
    fields = Checkpoint.load(folder / "checkpoint").fields["position"]
    return fields["epoch"], fields["step"]


def written_at(folder: Path) -> int:
    try:
        return (folder / "checkpoint").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_killed_at_random_moments_and_resumed_it_ends_with_the_same_bits(kind: str, store: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process = start(kind, str(store), str(whole), None)

    generator = np.random.default_rng()
    reached: set[tuple[int, int]] = set()
    for _ in range(NUM_KILLS):
        other = start(kind, str(store), str(killed), 0.0)
        # Some milliseconds after its first checkpoint, wherever in a step or in a write that is.
        before = written_at(killed)
        while other.is_alive() and written_at(killed) == before:
            time.sleep(0.002)
        time.sleep(generator.uniform(0.0, 0.2))
        other.kill()
        other.join()
        assert other.exitcode == -signal.SIGKILL
        reached.add(position(killed))
    assert len(reached) > 1, f"only killed at {reached}: the test has not tested much"
    last = start(kind, str(store), str(killed), 0.2)
    for finished in (process, last):
        finished.join()
        assert finished.exitcode == 0
    expected, found = load_file(whole / "vectors.safetensors"), load_file(killed / "vectors.safetensors")
    assert expected.keys() == found.keys()
    for name, vectors in expected.items():
        assert torch.equal(vectors, found[name]), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_another_configuration_or_window_is_refused_with_what_differs(kind: str, store: Path, tmp_path: Path) -> None:
    life = Lifecycle(checkpoint=tmp_path / "checkpoint", every_seconds=0.0, resume=True)
    config, run = CONFIGS[kind], (kge.train if kind == "kge" else contrastive.train)
    with GraphStore.open(store, read_only=True) as graph:
        run(graph.view(), config, lifecycle=life)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=r"another run.*config\.lr: .* there, 0\.5 here"):
            run(graph.view(), config.model_copy(update={"lr": 0.5}), lifecycle=life)  # type: ignore[arg-type]
        end = np.datetime64(1_700_000_000_000_000 + 1_500_000_000, "us").astype(object)
        with pytest.raises(CheckpointError, match="window: "):
            run(graph.view(as_of=end), config, lifecycle=life)  # type: ignore[arg-type]
