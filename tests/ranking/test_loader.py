from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multifacet.ranking import ExampleLoader, Examples, LabelledColumns, arm_config, read_examples, train
from multifacet.ranking.loader import Batch
from multifacet.ranking.recent import RecentPins
from multifacet.tables import IdMap

from .conftest import Planted
from .test_training import SMALL

MAPS = {"user": IdMap.exact(range(400)), "pin": IdMap.hashed(900, id_type="int64", num_hashes=2)}


@pytest.fixture(scope="module")
def examples(planted: Planted) -> Examples:
    few = planted.train.take(np.arange(1001))
    generator = np.random.default_rng(0)
    recent = RecentPins(
        pin_ids=1000 + generator.integers(0, 600, (1001, 3)), num_recent=generator.integers(0, 4, 1001).astype(np.int32)
    )
    # A label of its own for each row tells which one a batch holds.
    return replace(few, dense=np.arange(1001, dtype=np.float32)[:, None], dense_names=("row",), recent=recent)


def make(examples: Examples, **options: int) -> ExampleLoader:
    return ExampleLoader(examples, MAPS, batch_size=100, seed=7, **options)


def numbers(batches: list[Batch]) -> list[list[int]]:
    return [batch.dense[:, 0].int().tolist() for batch in batches]


def test_an_epoch_is_every_example_once_with_its_own_rows(examples: Examples) -> None:
    loader = make(examples)
    batches = list(loader)
    assert len(batches) == len(loader) == 11
    assert sorted(row for batch in numbers(batches) for row in batch) == list(range(1001))
    assert examples.recent is not None
    for batch, chosen in zip(batches, numbers(batches), strict=True):
        parts = batch.sparse.to_dict()
        assert parts["user"].values().tolist() == MAPS["user"].rows(examples.user_id[chosen]).tolist()
        assert parts["pin"].values().tolist() == MAPS["pin"].rows(examples.pin_id[chosen]).reshape(-1).tolist()
        assert parts["recent_pins"].lengths().tolist() == (2 * examples.recent.num_recent[chosen]).tolist()
        listed = examples.recent.take(np.array(chosen)).listed()
        assert parts["recent_pins"].values().tolist() == MAPS["pin"].rows(listed).reshape(-1).tolist()
        assert batch.ctr.tolist() == examples.ctr_label[chosen].tolist()


def test_orders_differ_by_epoch_and_come_again_with_the_seed(examples: Examples) -> None:
    first, again = make(examples), make(examples)
    epochs = [numbers(list(first)) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert [numbers(list(again)) for _ in range(2)] == epochs


@pytest.mark.parametrize("prefetch", [1, 5])
def test_it_goes_on_in_the_middle_of_an_epoch(examples: Examples, prefetch: int) -> None:
    whole = make(examples)
    expected = [numbers(list(whole)) for _ in range(2)]
    stopped = make(examples, prefetch=prefetch)
    list(stopped)
    for _, _batch in zip(range(4), stopped, strict=False):
        state = stopped.state_dict()
    resumed = make(examples)
    resumed.load_state_dict(state)
    assert numbers(list(resumed)) == expected[1][4:]
    assert resumed.state_dict()["epoch"] == 2
    with pytest.raises(ValueError, match="seed=8"):
        ExampleLoader(examples, MAPS, batch_size=100, seed=8).load_state_dict(state)


def test_ranks_share_each_batch(examples: Examples) -> None:
    whole = numbers(list(make(examples)))
    shares = [numbers(list(make(examples, rank=rank, num_ranks=2))) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(parts[0] + parts[1]) == sorted(batch)


ROWS = {
    "user_id": [1, 2, 3],
    "pin_id": [7, 8, 7],
    "shop": pa.array([4, None, 5], pa.int64()),
    "clicked": [True, False, True],
    "bought": pa.array([1, None, None], pa.float64()),
    "price": [1, 2, 3],
    "ctr_before": [0.1, 0.2, 0.3],
    "history": [[8, 7], [], [7]],
}
COLUMNS = LabelledColumns(
    advertiser="shop", conversion="bought", dense=("price", "ctr_before"), recent_pins="history", num_recent_pins=4
)


def test_labelled_rows_become_examples_from_parquet_arrow_and_duckdb(tmp_path: Path) -> None:
    table = pa.table(ROWS)
    pq.write_table(table, tmp_path / "rows.parquet")
    with duckdb.connect() as connection:
        connection.register("rows", table)
        made = [read_examples(source, COLUMNS) for source in (tmp_path / "rows.parquet", table, connection.sql("FROM rows"))]
    assert len({examples.fingerprint() for examples in made}) == 1
    examples = made[0]
    assert examples.advertiser_id.tolist() == [4, -1, 5]
    assert examples.cvr_label.tolist()[:1] == [1.0]
    assert np.isnan(examples.cvr_label[1:]).all()
    assert examples.dense.tolist() == [[1, np.float32(0.1)], [2, np.float32(0.2)], [3, np.float32(0.3)]]
    assert examples.recent is not None
    assert examples.recent.num_recent.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("user_id", pa.array([1, None, 3]), "'user_id', row 1: a null"),
        ("user_id", [0.5, 1.0, 2.0], "expected ids, all integers or all strings"),
        ("clicked", [0, 2, 1], "row 1: a label other than 0 and 1"),
        ("bought", [0, 1, 0], "row 1: a conversion of what was not clicked"),
        ("price", [1.0, 2.0, float("nan")], "row 2: not a finite number"),
        ("price", ["1", "2", "3"], "expected numbers"),
        ("history", [[1], None, [2]], "'history', row 1: a null"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(name: str, values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_examples(pa.table({**ROWS, name: values}), COLUMNS)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"\['shop'\] are missing"):
        read_examples(pa.table(ROWS).drop_columns("shop"), COLUMNS)


def test_a_ranker_trains_on_ones_own_rows(planted: Planted) -> None:
    def rows(examples: Examples) -> pa.Table:
        return pa.table(
            {"user_id": examples.user_id, "pin_id": examples.pin_id, "clicked": examples.ctr_label, "x": examples.dense[:, 0]}
        )

    parts = [read_examples(rows(examples), LabelledColumns(dense=("x",))) for examples in (planted.train, planted.valid)]
    config = arm_config("pretrained", **SMALL, features=("user", "pin"), max_epochs=2)
    result = train(*parts, config, snapshots=planted.snapshots)
    assert result.metrics["valid_ctr_roc_auc"] > 0.75
