"""Plain pairs in, the best items by id out."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from multifacet.contrastive import ContrastiveConfig, ItemPredictor, Positives, read_pairs, train_pairs
from multifacet.pipeline.cli import app
from multifacet.tables import Snapshot
from multifacet.training import CheckpointError, Lifecycle, StepProgress, WarmStart

VALIDATION = 'validation={"num_latest": 2, "min_remaining": 2}'
ROWS = [(f"user {u}", f"item {i}") for u in range(24) for i in range(20) if i % 2 == u % 2 and (u + i) % 5]
CONFIG = ContrastiveConfig(dim=8, epochs=10, batch_size=32, num_uniform=8, num_degree=0, validation={"num_queries": 0})


def sources(folder: Path) -> dict[str, Any]:
    table = pa.table({name: [row[place] for row in ROWS] for place, name in enumerate(("user", "item"))})
    pq.write_table(table, folder / "p.parquet")
    table.to_pandas().to_csv(folder / "p.csv", index=False)
    table.to_pandas().to_csv(folder / "p.tsv", index=False, header=False, sep="\t")
    return {
        "arrow": table,
        "pandas": table.to_pandas(),
        "tuples": ROWS,
        "array": np.array(ROWS),
        "parquet": folder / "p.parquet",
        "csv": folder / "p.csv",
        "tsv": str(folder / "p.tsv"),
    }


def test_every_source_gives_the_same_pairs(tmp_path: Path) -> None:
    found = {name: read_pairs(source) for name, source in sources(tmp_path).items()}
    expected = found["tuples"]
    assert len(expected.positives) == len(ROWS)
    for name, pairs in found.items():
        assert np.array_equal(pairs.positives.queries, expected.positives.queries), name
        assert np.array_equal(pairs.positives.items, expected.positives.items), name
        assert (pairs.query_ids, pairs.item_ids) == (expected.query_ids, expected.item_ids)
    numbers = torch.tensor([[5, 1], [6, 1]])
    for dataset in (TensorDataset(numbers), TensorDataset(*numbers.unbind(1)), numbers):
        assert read_pairs(dataset).query_ids.to_pylist() == [5, 6]
    weighted = read_pairs(pa.table({"u": [1, 2], "i": [7, 7], "n": [2.0, 0.0]}), columns=("u", "i"), weight="n")
    assert weighted.positives.weights.tolist() == [2.0]


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (7, {}, TypeError, "pairs are a int"),
        ([], {}, ValueError, "no pairs"),
        ([("a",)], {}, ValueError, r"\(query, item\) each"),
        (["ab"], {}, ValueError, r"\(query, item\) each"),
        ([("a", 1), ("b", "c")], {}, ValueError, "all integers or all strings"),
        (pa.table({"a": [1]}), {}, ValueError, r"no columns \['user', 'item'\]"),
        (pd.DataFrame({"user": ["a", None], "item": ["b", "b"]}), {}, ValueError, "'user' has 1 nulls, the first in row 1"),
        (pd.DataFrame({"user": [0.5], "item": ["b"]}), {}, TypeError, "ids are integers or strings"),
        (pa.table({"user": [1], "item": [2], "n": [-1.0]}), {"weight": "n"}, ValueError, "edge 0 has -1"),
        (pa.table({"user": [1], "item": [2], "n": ["x"]}), {"weight": "n"}, ValueError, "are no numbers"),
        (pa.table({"user": [1], "item": [2], "n": [0]}), {"weight": "n"}, ValueError, "weight zero"),
        ([("a", "b")], {"columns": "user"}, ValueError, "expected the names of the columns"),
        (Path("nowhere.csv"), {}, FileNotFoundError, "no file of pairs nowhere.csv"),
    ],
)
def test_what_is_no_pairs_is_refused(source: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_pairs(source, **options)


def test_the_best_items_by_id_are_those_of_every_single_score(tmp_path: Path) -> None:
    pairs = read_pairs(ROWS)
    result = train_pairs(pairs, CONFIG)
    snapshot = result.write_snapshot(tmp_path / "s", pairs.ids("user", "pin"))
    predictor = ItemPredictor.from_snapshot(tmp_path / "s")
    users, items = pairs.query_ids.to_pylist(), pairs.item_ids.to_pylist()
    scores = result.vectors["pin"] @ result.vectors["user"][users.index("user 7")]
    expected = sorted(zip(items, scores.tolist(), strict=True), key=lambda pair: -pair[1])[:6]
    found = predictor.top_items("user 7", k=6)
    assert [prediction.id for prediction in found] == [name for name, _ in expected]
    assert {prediction.id for prediction in found} <= {f"item {i}" for i in range(1, 20, 2)}
    left = predictor.top_items("user 7", k=3, known=[found[0].id, "never seen"])
    assert [prediction.id for prediction in left] == [prediction.id for prediction in found[1:4]]
    with pytest.raises(KeyError, match="no 'query' with the id 'user 99'"):
        predictor.top_items("user 99")
    with pytest.raises(TypeError, match="ids of 'query' are strings"):
        predictor.top_items(7)
    with pytest.raises(ValueError, match="k is 0"):
        predictor.top_items("user 7", k=0)
    with pytest.raises(ValueError, match=r"no tables of \['shop'\]"):
        ItemPredictor.from_snapshot(snapshot, item_type="shop")
    with pytest.raises(ValueError, match="there are None nodes"):
        result.write_snapshot(tmp_path / "t", {"user": pairs.query_ids})


def test_the_same_by_commands(tmp_path: Path) -> None:
    sources(tmp_path)
    run = CliRunner().invoke
    settings = [part for name in ("dim=8", "epochs=2", "batch_size=32", VALIDATION) for part in ("--set", name)]
    output = tmp_path / "snapshot"
    answer = run(app, ["pretrain", "contrastive", "--pairs", str(tmp_path / "p.csv"), *settings, str(output), "--json"])
    assert answer.exit_code == 0, answer.output
    assert Snapshot.load(output).metrics["num_held_out"] > 0
    answer = run(app, ["snapshot", "predict", str(output), "user 7", "-k", "3", "--json"])
    assert answer.exit_code == 0, answer.output
    assert '"item ' in answer.stdout
    assert run(app, ["snapshot", "predict", str(output), "user 99"]).exit_code == 1
    assert run(app, ["snapshot", "predict", str(output), "user 7", "--relation", "buys"]).exit_code == 2


SETTINGS = [part for name in ("dim=8", "epochs=3", "batch_size=32", VALIDATION) for part in ("--set", name)]


def test_a_training_on_pairs_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    pairs, stop = read_pairs(ROWS), threading.Event()
    held_out = Positives.from_pairs([0, 1], [1, 0], num_queries=24, num_items=20)
    whole = train_pairs(pairs, CONFIG, held_out=held_out)

    def interrupt(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (3, 2):
            stop.set()

    life = {"checkpoint": tmp_path / "c", "every_seconds": 600.0}
    with pytest.raises(KeyboardInterrupt):
        train_pairs(pairs, CONFIG, held_out=held_out, lifecycle=Lifecycle(**life, on_step=interrupt, stop=stop))
    with pytest.raises(CheckpointError, match="Go on from it with resume=True"):
        train_pairs(pairs, CONFIG, held_out=held_out, lifecycle=Lifecycle(**life))
    # Another weight, another id, another held-out pair: each is another run.
    others = (read_pairs([*ROWS, ROWS[0]]), read_pairs([(f"{user}!", item) for user, item in ROWS]))
    for other, held in ((others[0], held_out), (others[1], held_out), (pairs, held_out.keep(np.array([True, False])))):
        with pytest.raises(CheckpointError, match="window"):
            train_pairs(other, CONFIG, held_out=held, lifecycle=Lifecycle(**life, resume=True))
    resumed = train_pairs(pairs, CONFIG, held_out=held_out, lifecycle=Lifecycle(**life, resume=True))
    for name, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[name], vectors)
    assert resumed.metrics == whole.metrics


def test_pairs_start_from_an_older_snapshot_by_id(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 3})
    pairs = read_pairs(ROWS)
    old = train_pairs(pairs, CONFIG).write_snapshot(tmp_path / "old", pairs)
    assert old.parents == (pairs.fingerprint(),)
    newer = read_pairs([*reversed(ROWS), ("user 99", "item 1")])
    warm = WarmStart.load(tmp_path / "old")
    result = train_pairs(newer, config, lifecycle=Lifecycle(warm_start=warm))
    snapshot = result.write_snapshot(tmp_path / "new", newer)
    assert old.fingerprint in snapshot.parents
    (item_type,) = {name for name in snapshot.node_types if snapshot.ids(name).equals(newer.item_ids)}
    assert snapshot.metrics["drift"][item_type]["num_matched"] == len(pairs.item_ids)
    with pytest.raises(ValueError, match="rows have none: give the pairs that read_pairs makes"):
        train_pairs(newer.positives, config, lifecycle=Lifecycle(warm_start=warm))


def test_commands_on_pairs_resume_and_start_warm(tmp_path: Path) -> None:
    sources(tmp_path)
    run, file = CliRunner().invoke, str(tmp_path / "p.csv")
    train = ["pretrain", "contrastive", "--pairs", file, *SETTINGS, "--json"]
    (tmp_path / "checkpoint").mkdir()
    answer = run(app, [*train, "--checkpoint", str(tmp_path / "checkpoint"), str(tmp_path / "first")])
    assert isinstance(answer.exception, CheckpointError), answer.output
    (tmp_path / "checkpoint").rmdir()
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--checkpoint-every", "0", "--resume"]
    answer = run(app, [*train, *options, str(tmp_path / "first")])
    assert answer.exit_code == 0, answer.output
    assert not (tmp_path / "checkpoint").exists()
    answer = run(app, [*train, "--warm-start", str(tmp_path / "first"), "--pull", "0.1", str(tmp_path / "second")])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["metrics"]["drift"]
    answer = run(app, [*train[:-1], "--warm-start", str(tmp_path / "first"), str(tmp_path / "third")])
    assert answer.exit_code == 0, answer.output
    assert "same 10" in answer.stdout  # the drift
