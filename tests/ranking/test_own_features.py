"""A feature is a line of configuration: string ids, further features, several over one id, lists, no dense ones, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from multifacet import ranking
from multifacet.ranking import (
    Columns,
    ExampleLoader,
    Examples,
    LabelledColumns,
    RankingConfig,
    group_roc_auc,
    make_id_maps,
    make_model,
    read_examples,
    read_times,
    train,
    write_model,
)
from multifacet.ranking.examples import concatenate
from multifacet.ranking.objective import training_loss
from multifacet.ranking.trainer import Trainer
from multifacet.serving import publish
from multifacet.tables import IdMap, Snapshot, SnapshotTable, encode

NUM_ROWS = 600
COLUMNS = LabelledColumns(
    user="user", pin="pin", advertiser="brand", features={"country": "country", "hour": "hour", "tags": "tags"}, weight="weight"
)


def table(num_rows: int = NUM_ROWS, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    users, pins = generator.integers(0, 30, num_rows), generator.integers(0, 20, num_rows)
    words = np.array(["red", "new", "sale"])
    return pa.table(
        {
            "user": [f"user {user}" for user in users],
            "pin": pins + 100,
            "brand": [None if pin % 5 == 0 else f"brand {pin % 5}" for pin in pins],
            "country": [("de", "fr", None)[number] for number in generator.integers(0, 3, num_rows)],
            "hour": generator.integers(0, 24, num_rows),
            "tags": [words[: generator.integers(0, 4)].tolist() for _ in range(num_rows)],
            "price": generator.random(num_rows),
            "weight": generator.random(num_rows) + 0.5,
            "clicked": (generator.random(num_rows) < np.where(users % 2 == pins % 2, 0.8, 0.2)).astype(int),
        }
    )


@pytest.fixture(scope="module")
def rows() -> Examples:
    return read_examples(table(), COLUMNS)


def config(**fields: Any) -> RankingConfig:
    given = {"features": ("user", "pin", "advertiser", "country", "hour", "tags"), "facets": ("own",), "pretrained_facets": ()}
    return RankingConfig(**(given | {"dim": 8, "batch_size": 64, "max_epochs": 2} | fields))


def test_ids_come_back_as_they_were_given(rows: Examples) -> None:
    source = table()
    assert rows.ids("user").to_pylist() == source["user"].to_pylist()
    assert rows.ids("pin").tolist() == source["pin"].to_pylist()
    assert rows.ids("advertiser").to_pylist() == [name or "" for name in source["brand"].to_pylist()]
    assert rows.ids("country").to_pylist() == [name or "" for name in source["country"].to_pylist()]
    assert rows.ids("hour").tolist() == source["hour"].to_pylist()
    assert rows.ids("tags").to_pylist() == [tag for tags in source["tags"].to_pylist() for tag in tags]
    with pytest.raises(KeyError, match="no id feature 'device'; the examples have user, pin, advertiser, country, hour, tags"):
        rows.ids("device")


def test_examples_survive_a_file_a_choice_and_a_join(rows: Examples, tmp_path: Path) -> None:
    rows.save(tmp_path / "e.parquet")
    loaded = Examples.load(tmp_path / "e.parquet")
    assert loaded.fingerprint() == rows.fingerprint()
    some = rows.take(np.arange(5, 50))
    assert some.ids("country").to_pylist() == rows.ids("country").to_pylist()[5:50]
    other = read_examples(table(80, seed=9), COLUMNS)
    joined = concatenate([some, other])
    for feature in rows.id_features:
        parts = [list(part.ids(feature).tolist()) for part in (some, other)]
        assert list(joined.ids(feature).tolist()) == parts[0] + parts[1], feature
    assert len(joined.weight) == 125
    plain = read_examples(table(80), LabelledColumns(user="user", pin="pin"))
    with pytest.raises(ValueError, match="1 of 2 parts have weight"):
        concatenate([some, plain])


def test_the_upper_model_sees_the_mean_of_a_list_and_the_row_of_an_id(rows: Examples) -> None:
    maps = make_id_maps((), rows, config())
    model = make_model(config(), maps, num_dense=0, list_lengths={"tags": rows.lists["tags"].length})
    columns = Columns.of(rows, model, maps)
    for looked_up in (model.gather(columns.rows), model.look_up(columns.rows)):
        slots = model.layout.slots(looked_up, columns.num_recent, None)
        places = [slot.feature for slot in model.upper.slots]
        tags = table()["tags"].to_pylist()
        for row in range(40):
            own = model.table("tags_own")[torch.from_numpy(maps["tags"].rows(pa.array(tags[row], pa.string()))).long()]
            expected = own.mean(0) if tags[row] else torch.zeros(8)
            torch.testing.assert_close(slots[row, places.index("tags")], expected)
            country = maps["country"].rows([table()["country"][row].as_py() or ""])[0]
            assert torch.equal(slots[row, places.index("country")], model.table("country_own")[country])


def test_gradients_reach_the_rows_of_a_list_as_autograd_says(rows: Examples) -> None:
    """One step of the trainer's sparse way against plain autograd through the whole tables."""
    settings = config(dropout=0.0)
    maps = make_id_maps((), rows, settings)
    torch.manual_seed(0)
    model = make_model(settings, maps, num_dense=0, list_lengths={"tags": rows.lists["tags"].length})
    columns = Columns.of(rows, model, maps).take(slice(0, 64))
    logits = model.train()(columns.dense, columns.rows)
    loss = training_loss(
        logits, columns.ctr, columns.cvr, columns.cvr_known, heads=settings.heads, cvr_weight=0.5, weight=columns.weight
    )
    loss.backward()
    gradients = {name: part.weight.grad.clone() for name, part in model.tables.embeddings.items()}
    before = {name: model.table(name).clone() for name in gradients}
    trainer = Trainer(model, settings, lambda _: None)  # type: ignore[arg-type,return-value]
    with trainer.lanes() as lanes:
        trainer.step(columns, lanes, number=0, learns_tables=True)
    for name, gradient in gradients.items():
        # Row-wise Adagrad's first step.
        squares = gradient.square().mean(1, keepdim=True)
        expected = before[name] - settings.table_lr * gradient / (squares.sqrt() + 1e-10)
        torch.testing.assert_close(model.table(name), torch.where(squares > 0, expected, before[name]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("interaction", ["dcn_v2", "dlrm", "masknet", "dhen"])
def test_a_ranker_without_dense_features_trains_and_is_exported(rows: Examples, interaction: str, tmp_path: Path) -> None:
    few = {"interaction": interaction, "features": ("user", "pin", "country"), "max_epochs": 1}
    result = train(rows.take(np.arange(400)), rows.take(np.arange(400, 600)), config(**few))
    ranking.export_model(tmp_path / "m", result)
    scores = ranking.load_model(tmp_path / "m").score(rows)
    np.testing.assert_allclose(scores, result.score(rows), atol=1e-6)
    publish(tmp_path / "m", tmp_path / "r", precision="fp32")
    with pytest.raises(ValueError, match="a ranker needs a feature"):
        train(rows, rows, RankingConfig(facets=(), pretrained_facets=()))


def test_features_of_one_node_type_share_ids_and_have_tables_of_their_own(tmp_path: Path, rows: Examples) -> None:
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    pins = Snapshot.write(
        tmp_path / "kge", facet="own", tables={"pin": SnapshotTable(ids=pa.array(range(100, 120)), vectors=vectors)}
    )
    source = table().append_column("liked", table()["pin"]).append_column("coarse", table()["pin"])
    columns = LabelledColumns(user="user", pin="pin", features={"liked": "liked", "coarse": "coarse", "country": "country"})
    examples = read_examples(source, columns)
    settings = RankingConfig(
        features=("user", "pin", "liked", "coarse", "country"),
        node_types={"liked": "pin", "coarse": "pin"},
        hash_rows={"coarse": {"rows": 7}},
        facets=("own",),
        pretrained_facets=("own",),
        dim=8,
        max_epochs=1,
        freeze_tables=True,
    )
    result = train(examples, examples, settings, snapshots=[pins])
    assert result.id_maps["liked"] is result.id_maps["pin"]
    assert torch.equal(result.model.table("liked_own"), result.model.table("pin_own"))
    assert result.model.table("coarse_own").shape == (7, 8)
    assert [coverage.table for coverage in result.coverage] == ["pin_own", "liked_own", "coarse_own"], (
        "no snapshot has countries"
    )
    ranking.export_model(tmp_path / "m", result)
    np.testing.assert_allclose(ranking.load_model(tmp_path / "m").score(examples), result.score(examples), atol=1e-6)


def test_weights_are_repetitions_of_examples_in_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 2, generator=generator)
    ctr = torch.tensor([1.0, 0, 1, 0, 1, 1])
    cvr, known = torch.tensor([1.0, 0, 0, 0, 1, 0]), torch.tensor([1.0, 0, 1, 0, 1, 0])
    counts = torch.tensor([1, 2, 3, 1, 2, 1])
    for heads in ("shared_bottom", "esmm"):
        weighted = training_loss(logits, ctr, cvr, known, heads=heads, cvr_weight=0.5, weight=counts.float())
        repeated = (column.repeat_interleave(counts, 0) for column in (logits, ctr, cvr, known))
        torch.testing.assert_close(weighted, training_loss(*repeated, heads=heads, cvr_weight=0.5))


def test_the_loader_gives_each_feature_its_rows(rows: Examples) -> None:
    maps = make_id_maps((), rows, config())
    loader = ExampleLoader(rows, maps, batch_size=50)
    batch = next(iter(loader))
    assert batch.sparse.keys() == ["user", "pin", "advertiser", "country", "hour", "tags"]
    assert batch.sparse["country"].lengths().tolist() == [1] * 50
    assert set(batch.sparse["tags"].lengths().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(5))
def test_group_auc_is_the_weighted_mean_of_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 12, 200)
    labels, scores = generator.integers(0, 2, 200), generator.integers(0, 9, 200) / 9
    labels[groups == 3] = 1
    total, num_rows = 0.0, 0
    for group in np.unique(groups):
        mine = groups == group
        if len(np.unique(labels[mine])) == 2:
            total += roc_auc_score(labels[mine], scores[mine]) * mine.sum()
            num_rows += mine.sum()
    assert group_roc_auc(labels, scores, groups) == pytest.approx(total / num_rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ("user", "user")}, "expected each name once"),
        ({"features": ("user", "a/b")}, "as tables are named"),
        ({"node_types": {"city": "place"}}, r"node_types names \['city'\]"),
        ({"features": ("a", "a_b"), "facets": ("b_c", "c"), "pretrained_facets": ()}, "both name a table 'a_b_c'"),
    ],
)
def test_configurations_that_name_tables_twice_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense": ("clicked",)}, "dense names 'clicked', the column of click"),
        ({"dense": ("rate",), "sampling_rate": "rate"}, "the column of sampling_rate"),
        ({"dense": ("price", "price")}, "named twice"),
        ({"features": {"user": "x"}}, r"features names \['user'\]"),
        ({"features": {"a b": "x"}}, r"features names \['a b'\]"),
    ],
)
def test_columns_that_would_tell_the_answer_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledColumns(**fields)


@pytest.mark.parametrize("rate", [0.0, -1.0, 10.0, float("nan")])
def test_sampling_rates_are_shares(rate: float) -> None:
    source = table(3).append_column("rate", pa.array([1.0, rate, 1.0]))
    columns = LabelledColumns(user="user", pin="pin", sampling_rate="rate", negative_rate="rate")
    with pytest.raises(ValueError, match=r"'rate', row 1: (a rate that is not above 0 and up to 1|not a finite number)"):
        read_examples(source, columns)


def test_times_are_times() -> None:
    source = pa.table(
        {"at": pa.array(["2025-01-02T03:04:05"]).cast(pa.timestamp("ns")).cast(pa.timestamp("ms", "Europe/Berlin"))}
    )
    columns = LabelledColumns(time="at")
    assert read_times(source, columns).tolist()[0].isoformat() == "2025-01-02T03:04:05"
    with pytest.raises(ValueError, match="expected timestamps or dates"):
        read_times(pa.table({"at": [1, 2]}), columns)
    with pytest.raises(ValueError, match="'at' is missing"):
        read_times(pa.table({"b": [1]}), columns)
    with pytest.raises(ValueError, match=r"set LabelledColumns\.time"):
        read_times(source, LabelledColumns())


def test_mismatched_features_are_named(rows: Examples) -> None:
    with pytest.raises(ValueError, match=r"features names \['device'\], which the training examples lack"):
        train(rows, rows, config(features=("user", "device")))
    numbers = read_examples(table().set_column(0, "user", pa.array(range(NUM_ROWS))), COLUMNS)
    with pytest.raises(ValueError, match=r"ids of \['user'\] are strings in one of training and validation"):
        train(rows, numbers, config())
    with pytest.raises(ValueError, match="the examples' ids of 'user' are strings, its id map is of int64"):
        rows.rows("user", IdMap.exact([1]))


class Upper(nn.Module):
    def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        del dense
        score = (embeddings[:, 0] * embeddings[:, 1]).sum(1, keepdim=True)
        return torch.cat([score, score], dim=1)


def test_a_model_of_ones_own_is_written_and_published(tmp_path: Path) -> None:
    maps = {"user": IdMap.exact(["ann"]), "pin": IdMap.exact([7, 8])}
    tables = {"user": torch.ones(2, 8), "pin": torch.full((3, 8), 0.5, dtype=torch.float16)}
    write_model(tmp_path / "m", Upper(), tables, maps)
    assert publish(tmp_path / "m", tmp_path / "r", precision="int8").num_shards == 1
    for wrong, message in (
        ((Upper(), {}, {}), "there are tables of"),
        ((Upper(), tables, {"user": maps["user"]}), "expected the same features"),
        ((Upper(), tables | {"pin": torch.ones(2, 8)}, maps), "has 2 rows, its id map 3"),
        ((Upper(), tables | {"pin": torch.ones(3, 4)}, maps), "rows of one length"),
        ((Upper(), tables | {"pin": torch.full((3, 8), torch.nan)}, maps), "not finite"),
        ((Upper(), tables | {"pin": torch.ones(3, 8, device="meta")}, maps), "on meta"),
        ((nn.Linear(8, 2), tables, maps), "cannot be called"),
    ):
        with pytest.raises(ValueError, match=message):
            write_model(tmp_path / "x", *wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_half_precision_rows_are_encoded_as_what_they_hold(dtype: torch.dtype, precision: Any) -> None:
    rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(encode(rows, precision), encode(rows.float(), precision))
