"""Edge weights are repetitions; no name collides with one that is made; nothing of a held-out pair is in training."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet import kge
from multifacet.graphdb import GraphSchema, GraphStore, GraphView, NodeType, Relation
from multifacet.kge import KgeConfig, KgeValidation, TripleSet, TripleSplit
from multifacet.kge.batches.source import BatchSource
from multifacet.kge.evaluation.ranks import rank_edges
from multifacet.kge.models.relations import Inverse, RelationParameters
from multifacet.kge.triples.triples import EdgeList
from multifacet.training import Lifecycle, WarmStart

CONFIG = KgeConfig(dim=8, epochs=3, batch_size=32, chunk_size=16, num_uniform=8, num_degree=8, validation={"num_edges": 0})


def weighted_view(path: Path, weights: list[float], *, repeated: bool, duplicates: str = "all", weighted: bool = True) -> Any:
    """Users 0..19 and pins 0..14; edge i of relation buys has weight i, or stands there so often."""
    generator = np.random.default_rng(3)
    users, pins = generator.integers(0, 20, len(weights)), generator.integers(0, 15, len(weights))
    _, first = np.unique(users * 100 + pins, return_index=True)
    users, pins, counts = users[first], pins[first], np.asarray(weights)[first]
    if repeated:
        users, pins, counts = (np.repeat(column, counts.astype(int)) for column in (users, pins, np.ones(len(counts))))
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")),
        relations=(Relation(src="user", name="buys", dst="pin", weighted=weighted, duplicates=duplicates),),
    )
    store = GraphStore.create(path, schema)
    store.load_nodes("user", pa.table({"id": np.arange(20)}))
    store.load_nodes("pin", pa.table({"id": np.arange(15)}))
    columns = {"src": users, "dst": pins, "time": [datetime(2025, 1, 5)] * len(users)}
    store.load_edges("buys", pa.table(columns | ({"weight": counts.astype(np.float32)} if weighted else {})))
    return store


@pytest.mark.parametrize(
    "options", [{}, {"num_uniform": 1, "chunk_size": 4}, {"max_edges_per_relation": 30}, {"model": "transr"}]
)
def test_a_weighted_graph_and_one_of_repeated_edges_give_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    weights = np.random.default_rng(0).integers(1, 6, 60).tolist()
    config = CONFIG.model_copy(update={"distinct_edges": False, **options})
    results = []
    for number, (repeated, duplicates) in enumerate(((False, "all"), (True, "all"), (True, "sum"))):
        with weighted_view(tmp_path / f"{number}.duckdb", weights, repeated=repeated, duplicates=duplicates) as store:
            results.append(kge.train(store.view(), config))
    for other in results[1:]:
        for name, table in results[0].vectors.items():
            assert torch.equal(table, other.vectors[name])
        assert results[0].history[-1]["loss"] == other.history[-1]["loss"]


def test_tables_in_partitions_take_weights_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    heads, tails = (generator.integers(0, 4000, 3000).astype(np.int32) for _ in range(2))
    weighted = TripleSet(
        heads=heads,
        relations=np.zeros(3000, np.int32),
        tails=tails,
        relation_names=("r",),
        ends={"r": ("e", "e")},
        num_nodes={"e": 4000},
        weights=generator.integers(1, 4, 3000).astype(np.float64),
    ).merged()
    none = weighted.take(slice(0))
    split = TripleSplit(train=weighted, valid=none, test=none)
    seen: list[int] = []
    lifecycle = Lifecycle(on_step=lambda progress: seen.append(progress.examples))
    result = kge.train_triples(split, CONFIG.model_copy(update={"partitions": 2, "epochs": 1}), lifecycle=lifecycle)
    assert seen[-1] == weighted.weights.sum()
    assert np.isfinite(result.history[-1]["loss"])


def test_weights_change_what_is_learned_unless_each_pair_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        weighted_view(tmp_path / "a.duckdb", [1.0, 9.0] * 30, repeated=False) as heavy,
        weighted_view(tmp_path / "b.duckdb", [1.0] * 60, repeated=False) as light,
    ):
        once = [kge.train(store.view(), CONFIG).vectors["pin"] for store in (heavy, light)]
        assert torch.equal(*once)
        assert "distinct_edges=False" in caplog.text
        config = CONFIG.model_copy(update={"distinct_edges": False})
        assert not torch.equal(*(kge.train(store.view(), config).vectors["pin"] for store in (heavy, light)))


def test_weights_that_say_no_number_of_times_are_refused(tmp_path: Path) -> None:
    for name, weights, message in (
        ("a", [1.0, -2.0] * 10, r"relation 'buys': \d+ of \d+ edges have a negative weight"),
        ("b", [0.0] * 20, "weight zero"),
    ):
        with (
            weighted_view(tmp_path / f"{name}.duckdb", weights, repeated=False) as store,
            pytest.raises(ValueError, match=message),
        ):
            kge.train(store.view(), CONFIG)
    for wrong in (-1.0, 0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"weights\[1\]"):
            triple_set([0, 1, 2], weights=[1.0, wrong, 1.0])
    with pytest.raises(ValueError, match="float64 column as long"):
        triple_set([0, 1, 2], weights=[1.0])


def triple_set(heads: list[int], weights: list[float] | None = None) -> TripleSet:
    return TripleSet(
        heads=np.array(heads, np.int32),
        relations=np.zeros(len(heads), np.int32),
        tails=np.zeros(len(heads), np.int32),
        relation_names=("r",),
        ends={"r": ("a", "b")},
        num_nodes={"a": 10, "b": 40},
        weights=None if weights is None else np.array(weights),
    )


@given(weights=st.lists(st.floats(0.01, 9.0), min_size=2, max_size=8))
@settings(max_examples=20, deadline=None)
def test_an_epoch_repeats_a_triple_as_often_as_its_weight_says_on_average(weights: list[float]) -> None:
    source = BatchSource(triple_set(list(range(len(weights))), weights), CONFIG)
    generator = np.random.default_rng(0)
    counts = np.zeros(len(weights))
    for _ in range(300):
        for _, positions, _ in source.epoch(generator):
            counts += np.bincount(positions, minlength=len(weights))
    error = np.abs(counts / 300 - weights)
    assert (error < 0.5 * 5 / 300**0.5).all()
    whole = np.array(weights) == np.floor(weights)
    assert (error[whole] == 0).all()


def test_an_epoch_without_end_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="max_edges_per_relation"):
        BatchSource(triple_set([0, 1], [1e12, 1.0]), CONFIG)
    bounded = BatchSource(triple_set([0, 1], [1e12, 1.0]), CONFIG.model_copy(update={"max_edges_per_relation": 50}))
    ((_, positions, _), *_) = bounded.epoch(np.random.default_rng(0))
    assert (positions == 0).all()
    small = triple_set([0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="less than one of them"):
        kge.train_triples(TripleSplit(train=small, valid=small.take(slice(0)), test=small.take(slice(0))), CONFIG)


# --- names ---


@pytest.mark.parametrize("other", ["b", "a^-1", "inverse/a", "a/translation", "relation/a"])
def test_no_name_of_a_relation_is_that_of_anothers_inverse(other: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"e{i}\ta\te{(i + 1) % 60}\ne{i}\t{other}\te{(i + 17) % 60}\n" for i in range(60)))
    split = TripleSplit.from_files(train=path)
    config = CONFIG.model_copy(update={"model": "rotate", "distance": "l2", "reciprocal": True})
    result = kge.train_triples(split, config)
    keys = ["a", other, Inverse("a"), Inverse(other)]
    assert list(result.relations.values) == keys
    places = {result.relations.values[key]["angle"].data_ptr() for key in keys}
    assert len(places) == 4
    assert len(result.relations.to_tensors()) == 8
    again = kge.train_triples(split, config)
    again.relations.table.zero_()
    again.relations.copy_from(result.relations.to_tensors())
    assert torch.equal(again.relations.table, result.relations.table)


def test_files_that_named_inverses_like_relations_are_read() -> None:
    model = kge.build_model(KgeConfig(model="distmult", dim=4))
    parameters = RelationParameters(model, ["a", "b"], reciprocal=True, generator=torch.Generator().manual_seed(0))
    tensors = {
        f"relation{kind}/{name}/diagonal": torch.full((4,), float(number))
        for kind in ("", "_adagrad")
        for number, name in enumerate(("a", "b", "a^-1", "b^-1"))
    }
    for read in (parameters.copy_from, parameters.warm_start):
        parameters.table.zero_()
        read(tensors)
        assert parameters.table[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    collided = RelationParameters(model, ["a", "a^-1"], reciprocal=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="shared parameters"):
        collided.copy_from(tensors)


# --- what validation may not see ---


@pytest.mark.parametrize("direction", ["same", "reverse"])
def test_a_held_out_pair_is_in_no_relation_of_training(direction: str, caplog: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(0)
    heads, tails = (column.astype(np.int32) for column in np.unravel_index(generator.choice(600, 300, replace=False), (30, 20)))
    flipped = direction == "reverse"
    everything = TripleSet(
        heads=np.concatenate([heads, tails if flipped else heads]),
        relations=np.repeat(np.arange(2, dtype=np.int32), 300),
        tails=np.concatenate([tails, heads if flipped else tails]),
        relation_names=("buys", "clicked_by" if flipped else "clicks"),
        ends={"buys": ("user", "pin"), **({"clicked_by": ("pin", "user")} if flipped else {"clicks": ("user", "pin")})},
        num_nodes={"user": 30, "pin": 20},
    )
    with caplog.at_level("INFO"):
        split = everything.hold_out(KgeValidation(num_edges=20, relations=("buys",), max_fraction=0.5), generator)
    assert len(split.valid) == 20
    assert len(split.train) == 600 - 40
    assert "20 of other relations" in caplog.text
    held: EdgeList = split.valid.edges()["buys"]
    pairs = set(zip(held.heads.tolist(), held.tails.tolist(), strict=True))
    for name, edges in split.train.edges().items():
        ends = (edges.tails, edges.heads) if name == "clicked_by" else (edges.heads, edges.tails)
        assert not pairs & set(zip(*(column.tolist() for column in ends), strict=True))


# --- rates ---


def test_the_relations_rate_follows_lr() -> None:
    assert KgeConfig().relation_lr == 0.05
    assert KgeConfig(lr=0.4).relation_lr == pytest.approx(0.1)
    assert KgeConfig(lr=0.4, relation_lr_factor=1.0).relation_lr == 0.4
    assert KgeConfig(lr=3e-4, full_softmax={"optimizer": "adam"}).relation_lr == 3e-4
    assert KgeConfig(lr=0.4, relation_lr=0.05).relation_lr == 0.05
    for config in (KgeConfig(lr=0.4), KgeConfig(lr=0.4, relation_lr_factor=2.0)):
        document = config.model_dump(mode="json")
        assert "relation_lr_factor" not in document
        assert KgeConfig(**document).model_dump(mode="json") == document
    with pytest.raises(ValueError, match="both say"):
        KgeConfig(relation_lr_factor=1.0, relation_lr=0.1)


@pytest.mark.parametrize("base", [{}, {"relation_lr_factor": 2.0}, {"relation_lr": 0.3}])
def test_a_trial_of_a_search_derives_the_rate_anew(view: GraphView, base: dict[str, float]) -> None:
    config = CONFIG.model_copy(update={"validation": KgeValidation(num_edges=30), "epochs": 1})
    config = KgeConfig(**config.model_dump(exclude_unset=True), **base)
    split = kge.split_view(view, config, np.random.default_rng(0))
    for lr in (0.1, 0.2):
        found = kge.search(split, config, {"lr": [lr]}, minutes=0.001, num_seeds=0).config
        assert found.lr == lr
        assert found.relation_lr == pytest.approx(base.get("relation_lr", lr * base.get("relation_lr_factor", 0.25)))


# --- ranks ---


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("distance", ["squared", "l2"])
@pytest.mark.parametrize("clusters", [False, True])
def test_ranks_do_not_depend_on_where_a_table_lies(offset: float, distance: str, *, clusters: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    entities = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    if clusters:
        entities[::2] += 1e4
    entities = (entities + offset).float()
    config = KgeConfig(model="transe", dim=16, distance=distance)
    relations = RelationParameters(kge.build_model(config), ["r"], reciprocal=False, generator=generator)
    predictor = kge.LinkPredictor(
        model=kge.build_model(config), vectors={"e": entities}, relations=relations, ends={"r": ("e", "e")}
    )
    heads, tails = (torch.randint(0, 200, (100,), generator=generator).int().numpy() for _ in range(2))
    tails = (heads + 2 * (tails % 50)).astype(np.int32) % 200  # within a cluster
    known = kge.known_pairs(
        TripleSet(
            heads=heads,
            relations=np.zeros(100, np.int32),
            tails=tails,
            relation_names=("r",),
            ends={"r": ("e", "e")},
            num_nodes={"e": 200},
        )
    )
    ranks = rank_edges(predictor, {"r": EdgeList(heads=heads, tails=tails)}, known)["r"]
    queries = predictor.queries("r", torch.from_numpy(heads).long(), "tail").double()
    exact = (queries[:, None] - entities.double()).square().sum(-1).numpy()
    for place, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        others = np.setdiff1d(known["r"].row(head), [tail])
        keep = np.ones(200, dtype=bool)
        keep[others] = False
        expected = 1 + (exact[place][keep] < exact[place, tail]).sum()
        # What the vectors' own rounding leaves open.
        assert abs(ranks.tails[place] - expected) <= (0 if offset < 1e5 and not clusters else 2)


# --- warm start ---


@pytest.mark.parametrize("change", [{"model": "complex"}, {"distance": "l2"}])
def test_a_warm_start_from_another_model_or_distance_is_refused(
    view: GraphView, tmp_path: Path, change: dict[str, str]
) -> None:
    base = {"model": "transe", "dim": 8, "epochs": 1, "validation": {"num_edges": 0}}
    kge.train(view, KgeConfig(**base)).write_snapshot(tmp_path / "old", view)
    lifecycle = Lifecycle(warm_start=WarmStart.load(tmp_path / "old"))
    with pytest.raises(ValueError, match=r"was trained with (model|distance)="):
        kge.train(view, KgeConfig(**(base | change)), lifecycle=lifecycle)
    kge.train(view, KgeConfig(**base), lifecycle=lifecycle)
