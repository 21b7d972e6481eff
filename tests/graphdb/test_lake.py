"""Tables that lie elsewhere: their rows arrive as they are, once, and files that hold none of them are not opened."""

from __future__ import annotations

import datetime as dt
import importlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Relation
from multifacet.graphdb.lake import DatabaseQuery, DeltaTable, IcebergTable, LakeTable, ParquetTable, open_table
from multifacet.graphdb.storage.edge_storage import EdgeStorage

DAYS = [dt.datetime(2026, 11, day) for day in (1, 2, 3)]


def schema_of(duplicates: str) -> GraphSchema:
    return GraphSchema(
        nodes=(NodeType(name="user", id_type="string"), NodeType(name="pin")),
        relations=(Relation(src="user", name="views", dst="pin", weighted=True, duplicates=duplicates),),  # type: ignore[arg-type]
    )


def events(days: list[dt.datetime], seed: int = 0) -> pa.Table:
    """Ten events of each day; ids and times that a conversion on the way would change."""
    generator = np.random.default_rng(seed)
    times = [day + dt.timedelta(microseconds=int(generator.integers(86_400_000_000))) for day in days for _ in range(10)]
    count = len(times)
    return pa.table(
        {
            "user": [f"u0{number} " for number in generator.integers(0, 5, count)],
            "pin": pa.array((1 << 62) + generator.integers(0, 5, count), pa.int64()),
            "time": pa.array(times, pa.timestamp("us")),
            "weight": pa.array(generator.random(count), pa.float64()),
            "unused": pa.array([{"a": 1}] * count),
        }
    )


class Lake:
    """One kind of table, made by the library that teams make them with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, rows: pa.Table) -> None:
        raise NotImplementedError

    def append(self, rows: pa.Table) -> None:
        raise NotImplementedError

    def table(self, **options: Any) -> LakeTable:
        raise NotImplementedError


class Iceberg(Lake):
    def _catalog(self) -> Any:
        return pytest.importorskip("pyiceberg.catalog", reason="the extra `lake` is not installed").load_catalog(
            "shop", **self._options
        )

    @property
    def _options(self) -> dict[str, str]:
        return {
            "type": "sql",
            "uri": f"sqlite:///{self.folder / 'catalog.db'}",
            "warehouse": f"file://{self.folder / 'warehouse'}",
        }

    def create(self, rows: pa.Table) -> None:
        catalog = self._catalog()
        transforms = importlib.import_module("pyiceberg.transforms")
        catalog.create_namespace("shop")
        table = catalog.create_table("shop.views", schema=rows.schema)
        with table.update_spec() as spec:
            spec.add_field("time", transforms.DayTransform(), "day")
        table.append(rows)

    def append(self, rows: pa.Table) -> None:
        self._catalog().load_table("shop.views").append(rows)

    def table(self, **options: Any) -> LakeTable:
        return IcebergTable(table="shop.views", catalog="shop", options=self._options, **options)


class Delta(Lake):
    def create(self, rows: pa.Table) -> None:
        deltalake = pytest.importorskip("deltalake", reason="the extra `lake` is not installed")
        for day in sorted({time.date() for time in rows["time"].to_pylist()}):
            deltalake.write_deltalake(self.folder / "views", of_day(rows, day), mode="append")

    append = create

    def table(self, **options: Any) -> LakeTable:
        return DeltaTable(path=self.folder / "views", **options)


class Hive(Lake):
    def create(self, rows: pa.Table) -> None:
        days = pa.array([str(time.date()) for time in rows["time"].to_pylist()])
        ds.write_dataset(
            rows.append_column("day", days),
            self.folder / "views",
            format="parquet",
            partitioning=ds.partitioning(pa.schema([("day", pa.string())]), flavor="hive"),
            existing_data_behavior="overwrite_or_ignore",
        )

    append = create

    def table(self, **options: Any) -> LakeTable:
        return ParquetTable(path=self.folder / "views", **options)


def of_day(rows: pa.Table, day: dt.date) -> pa.Table:
    return rows.filter(pa.array([time.date() == day for time in rows["time"].to_pylist()]))


@pytest.fixture
def edge_log() -> EdgeStorage:
    """Where edges are kept does not meet where they come from."""
    return "embedded"


@pytest.fixture(params=[Iceberg, Delta, Hive])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    made: Lake = request.param(tmp_path)
    return made


def edges_of(store: GraphStore) -> list[tuple[Any, ...]]:
    rows = store.sql("SELECT src_id, dst_id, time, weight FROM edges_views ORDER BY ALL").to_pylist()
    return [tuple(row.values()) for row in rows]


def expected(rows: pa.Table) -> list[tuple[Any, ...]]:
    return sorted(tuple(row[name] for name in ("user", "pin", "time", "weight")) for row in rows.to_pylist())


def load(store: GraphStore, source: Any, **options: Any) -> Any:
    return store.load_edges("views", source, src="user", dst="pin", **options)


@pytest.mark.parametrize("duplicates", ["all", "first", "last"])
def test_values_arrive_as_they_are_and_once(create: Callable[[GraphSchema], GraphStore], lake: Lake, duplicates: str) -> None:
    store, rows = create(schema_of(duplicates)), events(DAYS[:2])
    lake.create(rows)
    assert load(store, lake.table()).loaded == 20
    assert edges_of(store) == expected(rows)
    assert load(store, lake.table()).loaded == 0

    later = events(DAYS[2:], seed=1)
    lake.append(later)
    report = load(store, lake.table())
    assert (report.read, report.loaded) == (30, 10)
    assert edges_of(store) == expected(pa.concat_tables([rows, later]))


def test_conditions_choose_rows_and_files(create: Callable[[GraphSchema], GraphStore], lake: Lake, tmp_path: Path) -> None:
    rows = events(DAYS)
    lake.create(rows)
    where = ["time >= 2026-11-02", ("time", "<", DAYS[2])]
    pieces = lake.table(where=where).pieces(None)
    # Iceberg and Delta know each file's times; of plain Parquet the folders' names tell.
    assert len(pieces) == (3 if isinstance(lake, Hive) else 1)
    if isinstance(lake, Hive):
        assert len(lake.table(where="day = 2026-11-02").pieces(None)) == 1
    store = create(schema_of("all"))
    load(store, lake.table(where=where))
    assert edges_of(store) == expected(of_day(rows, DAYS[1].date()))
    for file in tmp_path.rglob("*.parquet"):
        if "2026-11-03" in str(file):
            file.write_bytes(b"damaged")
    again = create(schema_of("all"))
    load(again, lake.table(where=["day <= '2026-11-02'"] if isinstance(lake, Hive) else ["time < 2026-11-03"]))
    assert len(edges_of(again)) == 20


def test_no_row_fulfils_the_conditions(create: Callable[[GraphSchema], GraphStore], lake: Lake) -> None:
    lake.create(events(DAYS))
    store = create(schema_of("all"))
    report = load(store, lake.table(where="time > 2027-01-01T00:00:00+02:00"))
    assert (report.read, report.loaded) == (0, 0)
    with pytest.raises(GraphError, match="column 'heft' is missing"):
        load(store, lake.table(where="time > 2027-01-01"), weight="heft")


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("when >= 3", "on column 'when', and there are"),
        ("pin >= 3.5", "column 'pin' is int64, and the condition's value '3.5' is none"),
        ("time >= yesterday", "'yesterday' is none"),
        ("time like 3", "is no condition"),
        (("time", ">=", 20261101), "20261101 is none"),
        (("pin", "in", [3]), "is no condition"),
        (("pin", "=", None), "None is none"),
    ],
)
def test_a_condition_that_does_not_fit(
    create: Callable[[GraphSchema], GraphStore], lake: Lake, condition: Any, told: str
) -> None:
    lake.create(events(DAYS[:1]))
    with pytest.raises(GraphError, match=told):
        load(create(schema_of("all")), lake.table(where=[condition]))


def test_older_versions(create: Callable[[GraphSchema], GraphStore], tmp_path: Path) -> None:
    delta = Delta(tmp_path)
    rows = events(DAYS[:1])
    delta.create(rows)
    delta.append(events(DAYS[1:2], seed=1))
    store = create(schema_of("all"))
    load(store, delta.table(version=0))
    assert edges_of(store) == expected(rows)
    with pytest.raises(GraphError, match=r"cannot read delta:.* at version 7"):
        load(store, delta.table(version=7))


def test_iceberg_rows_that_were_deleted_and_columns_that_were_renamed(
    create: Callable[[GraphSchema], GraphStore], tmp_path: Path
) -> None:
    lake = Iceberg(tmp_path)
    rows = events(DAYS)
    lake.create(rows)
    table = lake._catalog().load_table("shop.views")
    table.delete("time < '2026-11-02T00:00:00'")
    first = table.current_snapshot().parent_snapshot_id
    with table.update_schema() as update:
        update.rename_column("weight", "strength")
    store = create(schema_of("all"))
    load(store, lake.table(), weight="strength")
    assert edges_of(store) == expected(rows.filter(pa.array([time >= DAYS[1] for time in rows["time"].to_pylist()])))
    older = create(schema_of("all"))
    load(older, lake.table(version=first))
    assert edges_of(older) == expected(rows)


def test_a_damaged_file_loads_nothing(create: Callable[[GraphSchema], GraphStore], lake: Lake, tmp_path: Path) -> None:
    lake.create(events(DAYS))
    files = sorted(tmp_path.rglob("*.parquet"))
    files[-1].write_bytes(files[-1].read_bytes()[:200])
    store = create(schema_of("all"))
    with pytest.raises(GraphError, match="cannot read"):
        load(store, lake.table())
    assert edges_of(store) == []


def test_files_of_other_columns_are_read_by_their_own(create: Callable[[GraphSchema], GraphStore], tmp_path: Path) -> None:
    """As files that are loaded by their paths: nothing is null because the first file did not have it."""
    rows = events(DAYS)
    for day, change in zip(DAYS, (pa.Table.combine_chunks, narrow, without_weight), strict=True):
        folder = tmp_path / "views" / f"day={day.date()}"
        folder.mkdir(parents=True)
        pq.write_table(change(of_day(rows, day.date())), folder / "part.parquet")
    table = ParquetTable(path=tmp_path / "views", where=["time < 2026-11-03", "day < 2026-11-03"])
    store = create(schema_of("all"))
    load(store, table)
    assert edges_of(store) == expected(rows.slice(0, 20))
    with pytest.raises(GraphError, match=r"column 'weight' is missing, .*2026-11-03.* has"):
        load(create(schema_of("all")), ParquetTable(path=tmp_path / "views", where="time < 2027-01-01"))


def narrow(rows: pa.Table) -> pa.Table:
    """The same values in another order of columns, and text in another type."""
    return rows.select(["weight", "time", "pin", "user"]).set_column(3, "user", rows["user"].cast(pa.large_string()))


def without_weight(rows: pa.Table) -> pa.Table:
    return rows.drop_columns("weight")


def test_what_folders_say_is_text(create: Callable[[GraphSchema], GraphStore], tmp_path: Path) -> None:
    for name in ("007", "7", "a%2Fb"):
        folder = tmp_path / "views" / f"user={name}"
        folder.mkdir(parents=True)
        pq.write_table(events(DAYS[:1]).drop_columns("user"), folder / "part.parquet")
    (tmp_path / "views" / "_SUCCESS").touch()
    store = create(schema_of("all"))
    load(store, ParquetTable(path=tmp_path / "views"))
    assert sorted(store.sql("SELECT DISTINCT src_id FROM edges_views")["src_id"].to_pylist()) == ["007", "7", "a/b"]


def test_a_database_says_what_its_query_says(create: Callable[[GraphSchema], GraphStore], tmp_path: Path) -> None:
    pytest.importorskip("adbc_driver_sqlite", reason="the extra `lake` is not installed")
    path = tmp_path / "shop 50%.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE views (user TEXT, pin INTEGER, time TEXT, weight REAL)")
        connection.executemany(
            "INSERT INTO views VALUES (?, ?, ?, ?)",
            [("ann ", 1 << 62, "2026-11-01T10:00:00", 0.1), (None, 2, "2026-11-02", 1.0), ("bob", 3, "never", 1.0)],
        )
    uri = f"sqlite:///{str(path).replace('%', '%25')}"
    source = DatabaseQuery(uri=uri, query="SELECT * FROM views ORDER BY pin DESC")
    store = create(schema_of("all"))
    report = load(store, source, batch="2026-11-01")
    assert report.num_rejected == 2
    assert edges_of(store) == [("ann ", 1 << 62, dt.datetime(2026, 11, 1, 10), 0.1)]
    assert load(store, source, batch="2026-11-01").loaded == 0
    with pytest.raises(GraphError, match="no such table"):
        load(store, DatabaseQuery(uri=uri, query="SELECT * FROM likes"))
    with pytest.raises(GraphError, match=r"readonly|read-only|read only"):
        load(store, DatabaseQuery(uri=uri, query="DELETE FROM views RETURNING user, pin, time, weight"))
    with pytest.raises(GraphError, match="there is no such file"):
        load(store, DatabaseQuery(uri=f"sqlite:///{tmp_path / 'absent.db'}", query="SELECT 1"))
    assert not (tmp_path / "absent.db").exists()


def test_no_address_tells_its_password() -> None:
    source = DatabaseQuery(uri="postgresql://reader:hunter2@127.0.0.1:1/shop", query="SELECT 1")
    assert source.address == "postgresql://127.0.0.1:1/shop"


@pytest.mark.parametrize(
    ("address", "options", "told"),
    [
        ("views.parquet", {"query": "SELECT 1"}, "a query is for databases"),
        ("sqlite:///a.db", {}, "takes a query"),
        ("views.parquet", {"version": 3}, "versions are of Iceberg's and Delta's"),
    ],
)
def test_what_an_address_does_not_have(address: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(GraphError, match=told):
        open_table(address, **options)


def test_addresses() -> None:
    iceberg = open_table("iceberg:prod/shop.views", where=["day >= 1"], version=4)
    assert isinstance(iceberg, IcebergTable)
    assert (iceberg.catalog, iceberg.table, iceberg.version) == ("prod", "shop.views", 4)
    assert isinstance(open_table("delta:lake/views"), DeltaTable)
    assert isinstance(open_table("s3://shop/views"), ParquetTable)
    assert isinstance(open_table("views/", where=["day = 3"]), ParquetTable)
    assert open_table("views/") is None


def test_what_is_not_there(create: Callable[[GraphSchema], GraphStore], tmp_path: Path) -> None:
    store = create(schema_of("all"))
    for table in (
        ParquetTable(path=tmp_path / "absent"),
        ParquetTable(path=tmp_path),
        DeltaTable(path=tmp_path / "absent"),
        IcebergTable(table="shop.absent", catalog="shop", options=Iceberg(tmp_path)._options),
    ):
        with pytest.raises(GraphError, match="cannot read"):
            load(store, table)
