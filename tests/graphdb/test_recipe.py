"""Recipes, on the sample that comes with the project; counts by plain SQL over its Parquet files."""

from __future__ import annotations

import datetime as dt
import gzip
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multifacet.graphdb import GraphError, GraphStore, LoadReport, Recipe
from multifacet.graphdb.recipe import RECIPES

SAMPLE = RECIPES / "sample"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphStore]:
    path = tmp_path_factory.mktemp("recipe") / "cj.duckdb"
    reports: list[LoadReport] = []
    assert Recipe.load("completejourney").build(path, SAMPLE, on_load=reports.append) == reports
    assert [path.name for path in path.parent.iterdir()] == [path.name]
    with GraphStore.open(path, read_only=True) as store:
        yield store


def _count(sql: str) -> int:
    with duckdb.connect() as raw:
        for path in SAMPLE.glob("*.parquet"):
            raw.execute(f"CREATE VIEW {path.stem} AS FROM '{path}'")
        row = raw.execute(f"SELECT count(*) FROM ({sql})").fetchone()
    assert row is not None
    return int(row[0])


PROMOTED = (
    "SELECT DISTINCT t.household_id, t.store_id, t.week, t.product_id FROM transactions t "
    "JOIN promotions p ON p.product_id = t.product_id AND p.store_id = t.store_id AND p.week = t.week"
)


def _first_times(where: str) -> str:
    return (
        "SELECT DISTINCT household_id, product_id, first FROM (SELECT *, min(transaction_timestamp) OVER "
        "(PARTITION BY household_id, store_id, week, product_id) AS first FROM transactions) t WHERE " + where
    )


EDGES = {
    "responds": _first_times(f"(household_id, store_id, week, product_id) IN ({PROMOTED})"),
    "buys": _first_times(f"(household_id, store_id, week, product_id) NOT IN ({PROMOTED})"),
    "made_by": "SELECT DISTINCT product_id, manufacturer_id FROM products",
    "in": "SELECT product_id FROM products WHERE product_category IS NOT NULL",
    "covers": "SELECT DISTINCT campaign_id, product_id FROM coupons",
    "targets": "SELECT DISTINCT campaign_id, household_id FROM campaigns",
}


@pytest.mark.parametrize("relation", EDGES)
def test_edges_are_those_of_the_files(built: GraphStore, relation: str) -> None:
    assert built.counts()["edges"][relation] == _count(EDGES[relation])


def test_nodes_are_those_of_the_files(built: GraphStore) -> None:
    nodes = built.counts()["nodes"]
    pins = "SELECT product_id FROM products UNION SELECT product_id FROM transactions UNION SELECT product_id FROM coupons"
    assert nodes["pin"] == _count(pins)
    assert nodes["advertiser"] == _count("SELECT DISTINCT manufacturer_id FROM products")
    assert nodes["campaign"] == _count("SELECT campaign_id FROM campaign_descriptions")
    assert nodes["category"] == _count("SELECT DISTINCT product_category FROM products WHERE product_category IS NOT NULL")


def test_plain_tables_are_those_of_the_files(built: GraphStore) -> None:
    def count(table: str) -> int:
        return int(built.sql(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py())

    assert count("periods") == 53
    assert count("visits") == _count("SELECT DISTINCT household_id, store_id, week FROM transactions")
    assert count("purchases") == _count("SELECT DISTINCT household_id, product_id, week FROM transactions WHERE quantity > 0")
    assert count("responses") == _count(
        f"SELECT DISTINCT household_id, store_id, week, product_id FROM transactions WHERE quantity > 0 "
        f"AND (household_id, store_id, week, product_id) IN ({PROMOTED})"
    )
    assert count("placements") == _count(
        "SELECT DISTINCT product_id, store_id, week FROM promotions "
        "WHERE (store_id, week) IN (SELECT (store_id, week) FROM transactions)"
    )
    late = "SELECT count(*) AS n FROM responses JOIN periods USING (period) WHERE time < start_time OR time >= end_time"
    assert built.sql(late).to_pylist() == [{"n": 0}]


def test_all_rows_are_accounted_for(built: GraphStore) -> None:
    loads = built.sql("SELECT * FROM loads").to_pylist()
    assert all(load["read"] == load["loaded"] + load["already_there"] + load["rejected"] for load in loads)
    assert {load["rejected"] for load in loads} == {0}


def test_refuses_a_path_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(GraphError, match="exists; remove it"):
        Recipe.load("completejourney").build(path, SAMPLE)
    assert path.read_text() == "mine"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    recipe = Recipe.load("completejourney")
    broken = recipe.model_copy(update={"tables": {"visits": {"sql": "SELECT nothing FROM nowhere"}}})
    with pytest.raises(GraphError, match=r"recipe 'completejourney', \[tables\.visits\]: .*nowhere"):
        broken.build(tmp_path / "store.duckdb", SAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_names_missing_files_and_recipes(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="fetch them from https://grouplens"):
        Recipe.load("movielens").build(tmp_path / "s.duckdb")
    with pytest.raises(GraphError, match=r"lacks transactions\.parquet"):
        Recipe.load("completejourney").build(tmp_path / "s.duckdb", tmp_path)
    with pytest.raises(GraphError, match="no recipe 'nope', known: completejourney, lightgcn"):
        Recipe.load("nope")
    path = tmp_path / "bad.toml"
    path.write_text("name = 'bad'\ncolour = 'red'\n")
    with pytest.raises(GraphError, match=r"\[colour\] is no key"):
        Recipe.load(path)


def test_every_recipe_has_a_schema_or_names_its_relations_from_the_data() -> None:
    for name in Recipe.names():
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert recipe.nodes


def test_movielens(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,5,4.0,964982703\n1,6,2.5,964982703\n2,5,1.0,964982704\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n5,"Heat, The (1995)",Action|Crime\n6,Nameless,(no genres listed)\n'
    )
    Recipe.load("movielens").build(tmp_path / "s.duckdb", tmp_path)
    with GraphStore.open(tmp_path / "s.duckdb") as store:
        assert store.counts() == {"nodes": {"user": 2, "movie": 2, "genre": 2}, "edges": {"rates": 3, "has": 2}}
        assert store.sql("SELECT title, year FROM nodes_movie ORDER BY id").to_pylist() == [
            {"title": "Heat, The (1995)", "year": 1995},
            {"title": "Nameless", "year": None},
        ]
        first = store.sql("SELECT time, weight FROM edges_rates WHERE src_id = 1 AND dst_id = 6").to_pylist()
        assert first == [{"time": dt.datetime(2000, 7, 30, 18, 45, 3), "weight": 2.5}]


def test_lightgcn_text(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train.txt.gz", "wt") as file:
        file.write("0 10 11 12\n1 10\n2\n")
    (tmp_path / "test.txt").write_text("0 13\n1 11 \n")
    Recipe.load("lightgcn").build(tmp_path / "s.duckdb", tmp_path)
    with GraphStore.open(tmp_path / "s.duckdb") as store:
        assert store.counts() == {"nodes": {"user": 3, "item": 4}, "edges": {"clicks": 4, "clicks_in_test": 2}}
        pairs = store.sql("SELECT src_id, dst_id FROM edges_clicks ORDER BY ALL").to_pydict()
        assert list(zip(*pairs.values(), strict=True)) == [(0, 10), (0, 11), (0, 12), (1, 10)]


def test_triples_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\t/r/one\tb\nb\t/r/one\tc\n\"q\t/it's\ta\n")
    (tmp_path / "valid.txt").write_text("a\t/r/one\td\n")
    (tmp_path / "test.txt").write_text("a\t/r/two\tb\n")
    Recipe.load("triples").build(tmp_path / "s.duckdb", tmp_path)
    with GraphStore.open(tmp_path / "s.duckdb") as store:
        assert store.counts() == {"nodes": {"entity": 5}, "edges": {"/it's": 1, "/r/one": 2, "/r/two": 0}}
        assert store.sql('SELECT src_id, dst_id FROM "edges_/it\'s"').to_pylist() == [{"src_id": '"q', "dst_id": "a"}]
        assert store.sql("SELECT * FROM valid_triples").to_pylist() == [{"head": "a", "relation": "/r/one", "tail": "d"}]
        assert len(store.view().triples()) == 3


def test_the_template_works_as_it_stands(tmp_path: Path) -> None:
    when = dt.datetime(2026, 1, 1)
    pq.write_table(pa.table({"user_id": ["u1", "u2"], "pin_id": [1, 2], "clicked_at": [when] * 2}), tmp_path / "clicks.parquet")
    (tmp_path / "purchases.csv").write_text(
        "user_id,pin_id,bought_at,price\nu1,1,2026-01-02,5\nu1,1,2026-01-02,7\nu3,9,2026-01-03,-1\n"
    )
    (tmp_path / "pins.csv").write_text("pin_id,title,price,advertiser_id\n1,one,5.5,77\n2,two,,\n")
    reports = Recipe.load("template").build(tmp_path / "s.duckdb", tmp_path)
    assert sum(report.num_rejected for report in reports) == 0
    with GraphStore.open(tmp_path / "s.duckdb") as store:
        assert store.counts()["edges"] == {"clicks": 2, "buys": 1, "promoted_by": 1}
        assert store.sql("SELECT weight FROM edges_buys").to_pylist() == [{"weight": 12.0}]
        assert store.sql("SELECT purchases FROM days").to_pylist() == [{"purchases": 2}]
