"""How tables are printed: whole where a program reads, cut where a person does, at microseconds a row."""

from __future__ import annotations

import datetime as dt
import json
import time

import pyarrow as pa
import pytest

from multifacet.pipeline import output
from multifacet.pipeline.output import emit_arrow

NUM_ROWS = 30_000
FAR_US = 1_767_225_600_000_000_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    times = [1_767_225_600_000_000 + second * 1_000_000 for second in range(NUM_ROWS - 1)]
    return pa.table(
        {
            "src_id": pa.array(range(NUM_ROWS)),
            "name": [f"[{row}]\nx" for row in range(NUM_ROWS)],
            "weight": [float("nan") if row % 2 else row / 2 for row in range(NUM_ROWS)],
            "time": pa.array([*times, FAR_US]).cast(pa.timestamp("us")),
            "none": pa.nulls(NUM_ROWS, pa.string()),
        }
    )


def test_json_has_every_row(table: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    emit_arrow(table, as_json=True)
    assert (time.process_time() - started) / NUM_ROWS < 100e-6
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == NUM_ROWS
    assert rows[0] == {"src_id": 0, "name": "[0]\nx", "weight": 0.0, "time": "2026-01-01 00:00:00", "none": None}
    assert rows[1]["weight"] is None
    # A year that Python's datetime cannot hold.
    assert rows[-1]["time"].startswith("57971-02-25 00:00:00")


@pytest.mark.parametrize("num_rows", [0, 1])
def test_json_of_few_rows(table: pa.Table, capsys: pytest.CaptureFixture[str], num_rows: int) -> None:
    emit_arrow(table.slice(0, num_rows), as_json=True)
    assert len(json.loads(capsys.readouterr().out)) == num_rows


def test_a_pipe_gets_every_row_in_columns(table: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    emit_arrow(table, as_json=False, drop_empty=True)
    assert (time.process_time() - started) / NUM_ROWS < 100e-6
    head, rule, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["src", "id", "name", "weight", "time"]
    assert set(rule) == {"─", " "}
    assert len(lines) == NUM_ROWS
    assert lines[2].split() == ["2", "[2]\\nx", "1", "2026-01-01", "00:00:02"]
    assert "57971-02-25" in lines[-1]


def test_a_terminal_gets_the_first_rows(
    table: pa.Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(output, "_MAX_TABLE_ROWS", 20)
    emit_arrow(table.select(["src_id", "time"]), as_json=False)
    out = capsys.readouterr().out
    assert "29,980 more of 30,000 rows" in out
    assert "2026-01-01 00:00:19" in out
    assert "2026-01-01 00:00:20" not in out


def test_short_tables_are_laid_out(capsys: pytest.CaptureFixture[str]) -> None:
    emit_arrow(pa.table({"a": [1234, None], "at": [dt.datetime(2026, 1, 1), None]}), as_json=False)
    assert "1234" in capsys.readouterr().out
    emit_arrow(pa.table({"a": pa.array([], pa.int64())}), as_json=False)
    assert "no rows" in capsys.readouterr().out
