"""Which files are read, and how: text as it stands, each file by its own header and types, nothing lost without a word."""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.graphdb import GraphError, GraphSchema, GraphStore, NodeType, Query, Reading, Relation

Create = Callable[[GraphSchema], GraphStore]


@pytest.fixture
def edge_log() -> str:
    """Untimed edges are in the store's file, whatever its storage."""
    return "embedded"


SCHEMA = GraphSchema(
    nodes=(NodeType(name="user", id_type="string", properties={"age": "INTEGER", "zip": "VARCHAR"}), NodeType(name="pin")),
    relations=(
        Relation(src="user", name="r", dst="pin", timed=False),
        Relation(src="user", name="w", dst="pin", weighted=True),
    ),
)


def _users(store: GraphStore) -> list[str]:
    return sorted(store.sql("SELECT id FROM nodes_user")["id"].to_pylist())


def _rejected(store: GraphStore) -> list[tuple[Any, ...]]:
    rows = store.sql("SELECT file, row, reason FROM rejected_rows ORDER BY ALL").to_pylist()
    return [(Path(row["file"]).name, row["row"], row["reason"]) for row in rows]


def test_stars_mean_any_depth_and_folders_all_files(create: Create, tmp_path: Path) -> None:
    for number, folder in enumerate((".", "2026", "2026/01", "_temporary", ".hidden")):
        (tmp_path / folder).mkdir(exist_ok=True)
        pq.write_table(pa.table({"src": [f"u{number}"], "dst": [1]}), tmp_path / folder / "x.parquet")
    (tmp_path / "notes.txt").write_text("not data")
    for source in (
        str(tmp_path / "**/*.parquet"),
        tmp_path,
        [tmp_path / "2026", tmp_path / "x.parquet", tmp_path / "2026/x.parquet"],
    ):
        store = create(SCHEMA)
        report = store.load_edges("r", source)
        assert _users(store)[:3] == ["u0", "u1", "u2"]
        assert report.read == (4 if "**" in str(source) else 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GraphError, match="no file below the folder"):
        create(SCHEMA).load_edges("r", tmp_path / "empty")


def test_values_of_folders_are_columns_where_they_are_asked_for(create: Create, tmp_path: Path) -> None:
    folder = tmp_path / "dst=007"
    folder.mkdir()
    pq.write_table(pa.table({"src": ["a"]}), folder / "x.parquet")
    store = create(SCHEMA)
    store.load_edges("r", tmp_path)
    assert store.sql("SELECT dst_id FROM edges_r")["dst_id"].to_pylist() == [7]


def test_columns_that_exporters_add_are_no_matter(create: Create, tmp_path: Path) -> None:
    names = ["_row", "_file", "filename", "file_row_number", "FILE_INDEX", "_order0", "_reason", "_mf_line"]
    table = pa.table({"src": ["a", None], "dst": [1, 2], **{name: ["x", "y"] for name in names}})
    pq.write_table(table, tmp_path / "x.parquet")
    store = create(SCHEMA)
    assert store.load_edges("r", tmp_path / "x.parquet").loaded == 1
    assert _rejected(store) == [("x.parquet", 1, "src is null")]
    assert store.load_edges("r", table).already_there == 1


def test_names_of_columns_go_by_duckdbs_rule(create: Create) -> None:
    store = create(SCHEMA)
    assert store.load_edges("r", pa.table({"SRC": ["a"], "Dst": [1]})).loaded == 1
    assert store.load_edges("r", pa.table({"src": ["b"], "SRC": ["c"], "dst": [1]})).loaded == 1
    assert _users(store) == ["a", "b"]
    with pytest.raises(GraphError, match=r"column 'src' could be any of \['SRC', 'Src'\]"):
        store.load_edges("r", pa.table({"SRC": ["b"], "Src": ["c"], "dst": [1]}))


def test_each_file_is_read_by_its_own_types(create: Create, tmp_path: Path) -> None:
    days = [dt.date(2026, 1, 1), dt.datetime(2026, 1, 2, 15, 30)]
    tables = [
        pa.table({"src": [7], "dst": [1], "time": [days[0]], "weight": [1]}),
        pa.table({"src": ["007"], "dst": [1.0], "time": [days[1]], "weight": [2.75]}),
        pa.table({"src": [8.0], "dst": ["2"], "time": ["2026-01-03T00:00:00+02:00"], "weight": ["3.5"]}),
        pa.table({"src": [9], "dst": [1], "time": [days[0]], "weight": [1]}),
    ]
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{number}.parquet")
    store = create(SCHEMA)
    report = store.load_edges("w", tmp_path)
    assert (report.read, report.loaded) == (4, 4)
    rows = store.sql("SELECT src_id, dst_id, time, weight FROM edges_w ORDER BY time, src_id").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("7", 1, dt.datetime(2026, 1, 1), 1.0),
        ("9", 1, dt.datetime(2026, 1, 1), 1.0),
        ("007", 1, dt.datetime(2026, 1, 2, 15, 30), 2.75),
        ("8", 2, dt.datetime(2026, 1, 2, 22), 3.5),
    ]


def test_a_file_without_a_header_is_not_read_by_its_first_row(create: Create, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("src,dst\na,1\n")
    (tmp_path / "z.csv").write_text("b,2\n")
    store = create(SCHEMA)
    with pytest.raises(GraphError, match=r"z\.csv has \['b', '2'\]; .*columns=\('src', 'dst'\)"):
        store.load_edges("r", str(tmp_path / "*.csv"))
    assert store.counts()["edges"]["r"] == 0
    assert store.load_edges("r", tmp_path / "z.csv", columns=("src", "dst")).loaded == 1
    assert _users(store) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "reading"),
    [
        ("a.csv", "src;dst\n1e5;1\n", {"delimiter": ";"}),
        ("a.tsv", "src\tdst\n1e5\t1\n", {}),
        ("a.dat", "1e5::1::x\n", {"format": "csv", "delimiter": "::", "columns": ("src", "dst", "rest")}),
        ("a.txt", "src|dst\n1e5|1\n", {"format": "csv", "delimiter": "|"}),
        ("a.csv", "\ufeffsrc,dst\r\n1e5,1\r\n", {}),
        ("a.csv", 'dst,"src"\n1,"1e5"\n', {}),
        ("a.csv", "src,dst,extra\n1e5,1,\n", {}),
        ("a.jsonl", '{"src": "1e5", "dst": 1}\n', {}),
        ("a.ndjson", '{"dst": "1", "src": "1e5", "nested": {"a": [1]}}\n', {}),
        ("a.json", '[{"src": "1e5", "dst": 1.0}]', {}),
        ("a.csv", "src,dst\n1e5,1\nNA,2\n", {"null_texts": ("NA",)}),
    ],
)
def test_how_files_are_read_can_be_said(
    create: Create, tmp_path: Path, name: str, content: str, reading: dict[str, Any]
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    store = create(SCHEMA)
    store.load_edges("r", path, **reading)
    assert store.sql("SELECT src_id, dst_id FROM edges_r").to_pylist() == [{"src_id": "1e5", "dst_id": 1}]


def test_other_encodings_are_named(create: Create, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("src,dst\né,1\n".encode("latin-1"))
    store = create(SCHEMA)
    report = store.load_edges("r", path)
    assert (report.loaded, dict(report.rejected)) == (0, {"the line is not in the encoding of its file": 1})
    assert store.load_edges("r", path, encoding="latin-1").loaded == 1
    assert _users(store) == ["é"]
    with pytest.raises(GraphError, match="encoding 'koi8-r' is not one of utf-8, utf-16, latin-1"):
        store.load_edges("r", path, encoding="koi8-r")


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"delimeter": ";"}, "delimeter: is no option of reading"),
        ({"format": "xml"}, "format"),
        ({"header": False}, "name the columns with columns"),
        ({"time_unit": "h"}, "time_unit"),
    ],
)
def test_options_that_do_not_exist_are_refused(create: Create, tmp_path: Path, reading: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("src,dst\na,1\n")
    with pytest.raises(GraphError, match=message):
        create(SCHEMA).load_edges("r", path, **reading)


def test_options_that_mean_nothing_are_refused(create: Create, tmp_path: Path) -> None:
    table = pa.table({"src": ["a"], "dst": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    store = create(SCHEMA)
    for source in (table, tmp_path / "a.parquet", Query("SELECT 'a' AS src, 1 AS dst")):
        with pytest.raises(GraphError, match=r"delimiter: only .*files are read so"):
            store.load_edges("r", source, delimiter=";")


def test_a_wrong_delimiter_is_guessed_at_in_the_message_only(create: Create, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("src;dst\na;1\n")
    with pytest.raises(GraphError, match=r"column 'src' is missing.*cut by ';': give delimiter=';'"):
        create(SCHEMA).load_edges("r", tmp_path / "a.csv")


def test_lines_that_are_no_rows_are_set_aside_by_their_line(create: Create, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("src,dst\na,1\nb\nc,2,3\nd,x\ne,5\n")
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write(path.read_text())
    store = create(SCHEMA)
    report = store.load_edges("r", [path, tmp_path / "b.csv.gz"])
    assert (report.read, report.loaded, report.already_there, report.num_rejected) == (10, 2, 2, 6)
    assert _rejected(store) == [
        (name, line, reason)
        for name in ("a.csv", "b.csv.gz")
        for line, reason in (
            (3, "the line has too few columns"),
            (4, "the line has too many columns"),
            (5, "dst is not an int64"),
        )
    ]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["right", "wrong", "broken", "short", "long", "blank"]), min_size=1, max_size=12),
    line_end=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
    is_compressed=st.booleans(),
)
def test_a_rejected_row_stands_in_the_line_that_is_named(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], line_end: str, ends: bool, is_compressed: bool
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    lines, wanted = ["src,dst"], []
    for number, kind in enumerate(kinds):
        if kind in {"wrong", "short", "long"}:
            reason = {
                "wrong": "dst is not an int64",
                "short": "the line has too few columns",
                "long": "the line has too many columns",
            }
            wanted.append((len(lines) + 1, reason[kind]))
        if kind == "broken":
            lines += [f'"u{number}', "", f'",{number}']
        else:
            row = {"right": f"u{number},{number}", "wrong": f"u{number},x", "short": f"u{number}", "long": "a,1,2", "blank": ""}
            lines.append(row[kind])
    text = line_end.join(lines) + (line_end if ends or kinds[-1] == "blank" else "")
    path = folder / ("a.csv.gz" if is_compressed else "a.csv")
    path.write_bytes(gzip.compress(text.encode()) if is_compressed else text.encode())
    with GraphStore.create(folder / "g", SCHEMA) as store:
        report = store.load_edges("r", path)
        assert [(row, reason) for _, row, reason in _rejected(store)] == sorted(wanted)
        assert report.read == len([kind for kind in kinds if kind != "blank"])


def test_a_column_that_some_files_lack_is_null_where_that_is_said(create: Create, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("id,age\na,1\n")
    (tmp_path / "2.csv").write_text("id,age,zip\nb,2,00501\n")
    store = create(SCHEMA)
    with pytest.raises(GraphError, match=r"column 'zip' is missing, .*1\.csv has .*; union_by_name=True reads null there"):
        store.load_nodes("user", tmp_path)
    store.load_nodes("user", tmp_path, union_by_name=True)
    rows = store.sql("SELECT id, age, zip FROM nodes_user ORDER BY id").to_pylist()
    assert [tuple(row.values()) for row in rows] == [("a", 1, None), ("b", 2, "00501")]


def test_plain_tables_are_text_unless_told_otherwise(create: Create, tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    path.write_text("day,zip,clicks\n2026-01-01,00501,1e3\n")
    store = create(SCHEMA)
    store.load_table("days", path)
    assert store.sql("FROM days").to_pylist() == [{"day": "2026-01-01", "zip": "00501", "clicks": "1e3"}]
    store.load_table("days", path, types={"day": "date", "clicks": "DOUBLE"})
    assert store.sql("FROM days").to_pylist() == [{"day": dt.date(2026, 1, 1), "zip": "00501", "clicks": 1000.0}]
    for types, message in (
        ({"zip": "DATE"}, "column 'zip' is not a DATE: 00501"),
        ({"x": "DATE"}, "no column 'x'"),
        ({"day": "DAY"}, "'DAY'"),
    ):
        with pytest.raises(GraphError, match=message):
            store.load_table("days", path, types=types)
    path.write_text("day,zip\n1\n")
    with pytest.raises(GraphError, match="table 'days'"):
        store.load_table("days", path)
    assert store.sql("FROM days").num_rows == 1


BAD: dict[str, bytes] = {
    "cut.parquet": b"PAR1 and no more",
    "empty.parquet": b"",
    "empty.csv": b"",
    "broken.jsonl": b'{"src": "a", "dst": 1}\n{"src": \n',
    "broken.csv.gz": b"not gzip",
    "header.csv": b"src,dst\n",
    "nul.csv": b"src,dst\n\x00a\x00,1\n",
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_read_are_named(create: Create, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    store = create(SCHEMA)
    if name in {"header.csv", "nul.csv"}:
        report = store.load_edges("r", path)
        assert report.read == report.loaded + report.num_rejected
    else:
        with pytest.raises(GraphError, match=name) as refused:
            store.load_edges("r", path)
        assert "transaction" not in str(refused.value).lower()
    store.load_edges("r", pa.table({"src": ["z"], "dst": [1]}))  # the store goes on


def test_errors_of_a_source_are_its_own(create: Create) -> None:
    store = create(SCHEMA)
    broken = duckdb.sql(
        "SELECT CASE WHEN i = 5000 THEN error('disk went away') ELSE i::VARCHAR END AS src, 1 AS dst FROM range(10000) t(i)"
    )
    with pytest.raises(GraphError, match="disk went away"):
        store.load_edges("r", broken)
    with pytest.raises(GraphError, match=r"cannot read SELECT nothing FROM nowhere: .*nowhere"):
        store.load_edges("r", Query("SELECT nothing FROM nowhere"))
    for sql in ("DROP TABLE _meta", "SELECT 1 AS src, 2 AS dst; SELECT 3", "", "SELEC"):
        with pytest.raises(GraphError, match=r"query|SELECT"):
            store.load_edges("r", Query(sql))
    for number, end in enumerate((" -- a note", "; -- a note;", " /* x; */ ;\n\n", "")):
        assert store.load_edges("r", Query(f"SELECT 'u;{number}' AS src, 1 AS dst{end}")).loaded == 1


fields = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(fields, min_size=1, max_size=8, unique=True),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    cuts=st.lists(st.integers(0, 8), max_size=3),
)
def test_text_comes_back_from_csv_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], delimiter: str, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    bounds = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        # Columns stand in another order in every other file.
        lines = [["src", "dst"], *([text, "1"] for text in rows[start:stop])]
        quoted = [['"' + text.replace('"', '""') + '"' for text in (line if number % 2 else line[::-1])] for line in lines]
        (folder / f"{number}.csv").write_text("\n".join(delimiter.join(line) for line in quoted) + "\n", newline="")
    with GraphStore.create(folder / "g", SCHEMA) as store:
        report = store.load_edges("r", str(folder / "*.csv"), delimiter=delimiter)
        assert (report.read, report.num_rejected) == (len(rows), 0)
        assert _users(store) == sorted(rows)


def test_a_reading_is_what_it_says() -> None:
    assert Reading(delimiter=";").for_text_files == ["delimiter"]
