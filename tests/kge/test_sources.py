"""Plain triples in, predictions by id out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset
from torch_geometric.data import HeteroData
from typer.testing import CliRunner

from multifacet import kge
from multifacet.graphdb import GraphView
from multifacet.kge import KgeConfig, LinkPredictor, read_split, read_triples
from multifacet.pipeline.cli import app
from multifacet.tables import Snapshot

NUM_USERS, NUM_PINS = 20, 8
ROWS = [(f"user {u}", "buys", f"pin {p}") for u in range(NUM_USERS) for p in range(NUM_PINS) if p % 2 == u % 2] + [
    (f"user {u}", "likes", f"pin {u % NUM_PINS}") for u in range(NUM_USERS)
]
TYPES = {"buys": ("user", "pin"), "likes": ("user", "pin")}
CONFIG = KgeConfig(dim=8, epochs=30, batch_size=16, chunk_size=16, num_uniform=8, num_degree=0, validation={"num_edges": 0})


def sources(folder: Path) -> dict[str, Any]:
    table = pa.table({name: [row[place] for row in ROWS] for place, name in enumerate(("head", "relation", "tail"))})
    pq.write_table(table, folder / "t.parquet")
    table.to_pandas().to_csv(folder / "t.csv", index=False)
    table.to_pandas().to_csv(folder / "t.tsv", index=False, header=False, sep="\t")
    return {
        "arrow": table,
        "pandas": table.to_pandas(),
        "pandas categories": table.to_pandas().astype("category"),
        "polars": pl.from_arrow(table),
        "tuples": ROWS,
        "array": np.array(ROWS),
        "parquet": folder / "t.parquet",
        "csv": str(folder / "t.csv"),
        "tsv": folder / "t.tsv",
    }


def test_every_source_gives_the_same_triples(tmp_path: Path) -> None:
    found = {name: read_triples(source, types=TYPES) for name, source in sources(tmp_path).items()}
    expected = found["tuples"]
    assert repr(expected) == "TripleSet(user=20, pin=8, (user, buys, pin)=80, (user, likes, pin)=20)"
    names = [expected.ids["user"][int(head)].as_py() for head in expected.heads]
    assert names == [row[0] for row in ROWS]
    for name, triples in found.items():
        for column in ("heads", "relations", "tails"):
            assert np.array_equal(getattr(triples, column), getattr(expected, column)), name
        assert triples.ids == expected.ids, name


def test_pykeens_torchs_and_pygs_objects_are_read() -> None:
    from pykeen.triples import TriplesFactory  # noqa: PLC0415 - slow

    factory = TriplesFactory.from_labeled_triples(np.array(ROWS))
    triples = read_triples(factory)
    assert len(triples) == len(ROWS)
    decoded = {
        (triples.ids["entity"][int(h)].as_py(), triples.relation_names[int(r)], triples.ids["entity"][int(t)].as_py())
        for h, r, t in zip(triples.heads, triples.relations, triples.tails, strict=True)
    }
    assert decoded == set(ROWS)
    numbers = torch.tensor([[5, 0, 9], [9, 1, 5]])
    for dataset in (TensorDataset(numbers), TensorDataset(*numbers.unbind(1)), numbers):
        assert read_triples(dataset).ids["entity"].to_pylist() == [5, 9]
    data = HeteroData()
    data["user"].num_nodes, data["pin"].num_nodes = 3, 2
    data["user", "buys", "pin"].edge_index = torch.tensor([[0, 2], [1, 0]])
    data["user", "buys", "pin"].edge_weight = torch.tensor([2.0, 0.5])
    assert read_triples(data).weights.tolist() == [2.0, 0.5]
    data["user", "buys", "pin"].edge_weight = torch.tensor([2.0, 0.0])
    assert len(read_triples(data)) == 1


def test_repeated_triples_are_dropped_or_kept_by_choice() -> None:
    rows = [("a", "r", "b"), ("a", "r", "b"), ("b", "r", "a")]
    with pytest.raises(ValueError, match="1 triples of train stand there more than once"):
        read_triples(rows)
    assert len(read_triples(rows, duplicates="drop")) == 2
    assert len(read_triples(rows, duplicates="keep")) == 3
    with pytest.raises(ValueError, match="stand in valid too"):
        read_split(rows[1:], [("b", "r", "a")])
    for duplicates in ("drop", "keep"):
        split = read_split(rows, [("b", "r", "a"), ("b", "r", "a")], duplicates=duplicates)
        assert (len(split.train), len(split.valid)) == (1 if duplicates == "drop" else 2, 1)
    weighted = pa.table({"head": ["a", "b"], "relation": ["r", "r"], "tail": ["b", "a"], "n": [3, 1]})
    assert read_triples(weighted, weight="n").weights.tolist() == [3.0, 1.0]
    some = weighted.set_column(3, "n", pa.array([0.0, 2.5]))
    assert read_triples(some, weight="n").weights.tolist() == [2.5]
    with pytest.raises(ValueError, match="all triples have weight zero"):
        read_triples(some[:1], weight="n")
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"weights\[0\] is"):
            read_triples(weighted.set_column(3, "n", pa.array([wrong, 1.0])), weight="n")


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (7, {}, TypeError, "train is a int; expected a data frame"),
        ([], {}, ValueError, "no triples"),
        ([("a", "b")], {}, ValueError, r"train\[0\] is .*expected \(head, relation, tail\)"),
        ([("a", "r", 1)], {}, ValueError, "ids of 'entity' are string where they are heads and int64"),
        ([("a", "r", "b"), (1, "r", "b")], {}, ValueError, "all integers or all strings"),
        (pa.table({"h": ["a"]}), {}, ValueError, r"no columns \['head', 'relation', 'tail'\]"),
        (
            pd.DataFrame({"head": ["a", None], "relation": ["r", "r"], "tail": ["b", "b"]}),
            {},
            ValueError,
            "'head' has 1 nulls, the first in row 1",
        ),
        (pd.DataFrame({"head": [0.5], "relation": ["r"], "tail": ["b"]}), {}, ValueError, "ids are integers or strings"),
        ([("a", "r", "b")], {"types": {}}, ValueError, r"types says nothing of the relations \['r'\]"),
        ([("a", "r", "b")], {"duplicates": "some"}, ValueError, "duplicates is 'some'"),
        ([("a", "r", "b")], {"columns": "head"}, ValueError, "expected the names of the columns"),
        (Path("nowhere.tsv"), {}, FileNotFoundError, "no triple file nowhere.tsv"),
    ],
)
def test_what_is_no_triples_is_refused(source: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_triples(source, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[kge.KgeResult, kge.TripleSplit, Snapshot]:
    split = read_split(ROWS, types=TYPES)
    result = kge.train_triples(split, CONFIG)
    return result, split, result.write_snapshot(tmp_path_factory.mktemp("s") / "kge", split)


@pytest.mark.parametrize("options", [{}, {"model": "rotate", "distance": "l2", "reciprocal": True}, {"model": "transr"}])
def test_predictions_by_id_are_those_of_every_single_score(tmp_path: Path, options: dict[str, Any]) -> None:
    split = read_split(ROWS, types=TYPES)
    result = kge.train_triples(split, CONFIG.model_copy(update={"epochs": 2, **options}))
    result.write_snapshot(tmp_path / "s", split)
    predictor = LinkPredictor.from_snapshot(tmp_path / "s")
    users, pins = split.train.ids["user"].to_pylist(), split.train.ids["pin"].to_pylist()
    scores = result.predictor().score("buys", torch.full((8,), users.index("user 7")), torch.arange(8))
    expected = sorted(zip(pins, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    found = predictor.top_tails("user 7", "buys", k=10)
    assert [prediction.id for prediction in found] == [name for name, _ in expected]
    assert [prediction.score for prediction in found] == pytest.approx([score for _, score in expected], rel=1e-4, abs=1e-4)
    assert {prediction.id for prediction in predictor.top_heads("pin 3", "likes", k=3)} <= set(users)
    left = predictor.top_tails("user 7", "buys", known=split.train)
    assert {prediction.id for prediction in left} == {pin for pin in pins if ("user 7", "buys", pin) not in ROWS}


def test_a_trained_snapshot_knows_whose_pins_are_whose(trained: Any) -> None:
    _, _, snapshot = trained
    found = LinkPredictor.from_snapshot(snapshot).top_tails("user 7", "buys", k=4)
    assert {prediction.id for prediction in found} == {f"pin {p}" for p in range(1, 8, 2)}


def test_wrong_questions_are_answered_by_what_is_there(trained: Any, tmp_path: Path, view: GraphView) -> None:
    result, split, snapshot = trained
    predictor = LinkPredictor.from_snapshot(snapshot)
    with pytest.raises(KeyError, match="unknown relation 'sells'; this model has"):
        predictor.top_tails("user 7", "sells")
    with pytest.raises(KeyError, match="no 'user' with the id 'user 99'"):
        predictor.top_tails("user 99", "buys")
    with pytest.raises(TypeError, match="ids of 'user' are strings"):
        predictor.top_tails(7, "buys")
    with pytest.raises(ValueError, match="k is 0"):
        predictor.top_tails("user 7", "buys", k=0)
    with pytest.raises(ValueError, match="has no ids"):
        result.predictor().top_tails("user 7", "buys")
    with pytest.raises(ValueError, match="table 'user' has 20 rows, but the view has 40"):
        result.write_snapshot(tmp_path / "x", view)
    nameless = replace(split.train, ids={})
    none = nameless.take(slice(0))
    with pytest.raises(ValueError, match="these triples have no ids"):
        result.write_snapshot(tmp_path / "y", kge.TripleSplit(train=nameless, valid=none, test=none))


def test_a_snapshots_table_goes_into_torch_by_one_call(trained: Any) -> None:
    _, split, snapshot = trained
    embedding, id_map = snapshot.to_embedding("pin")
    rows = torch.from_numpy(id_map.rows(["pin 3", "pin 99"]))
    expected = snapshot.vectors("pin")[split.train.ids["pin"].to_pylist().index("pin 3")]
    assert torch.equal(embedding(rows)[0], expected)
    assert not embedding(rows)[1].any()
    assert embedding.weight.requires_grad
    assert not snapshot.to_embedding("pin", freeze=True)[0].weight.requires_grad
    with pytest.raises(KeyError):
        snapshot.to_embedding("shop")


def test_the_same_by_commands(tmp_path: Path) -> None:
    sources(tmp_path)
    run = CliRunner().invoke
    settings = [part for name in ("dim=8", "epochs=2") for part in ("--set", name)]
    types = ["--type", "buys=user,pin", "--type", "likes=user,pin"]
    output = tmp_path / "snapshot"
    answer = run(app, ["pretrain", "kge", "--triples", str(tmp_path / "t.csv"), *types, *settings, str(output), "--json"])
    assert answer.exit_code == 0, answer.output
    assert Snapshot.load(output).metrics["num_held_out"] > 0
    answer = run(app, ["snapshot", "predict", str(output), "user 7", "--relation", "buys", "-k", "3", "--json"])
    assert answer.exit_code == 0, answer.output
    assert '"pin ' in answer.stdout
    for arguments, code in (
        (["snapshot", "predict", str(output), "user 7"], 2),
        (["pretrain", "kge", str(output)], 2),
        (["pretrain", "kge", "--triples", str(tmp_path / "t.tsv"), "--as-of", "2025-01-01", str(tmp_path / "z")], 2),
        (["pretrain", "kge", "a", "b", "--valid", "c"], 2),
        (["pretrain", "kge", "--triples", str(tmp_path / "t.csv"), "--type", "buys", str(tmp_path / "z")], 2),
    ):
        assert run(app, arguments).exit_code == code, arguments
