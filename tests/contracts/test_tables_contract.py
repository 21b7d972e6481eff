from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import tables
from multifacet.tables import IdMap, Snapshot, SnapshotTable
from multifacet.training import WarmStart

from .contract import Case, missing_functions

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
NAN = torch.where(torch.arange(6)[:, None] == 2, torch.nan, ROWS)


def write(ids: Any, vectors: Any = ROWS, name: str = "pin", path: str = "s") -> Snapshot:
    return Snapshot.write(path, facet="kge", tables={name: SnapshotTable(ids=ids, vectors=vectors)}, replace=True)


def two(ids: list[Any], dim: int = 8) -> tuple[Snapshot, Snapshot]:
    return write(pa.array(range(6)), path="old"), write(pa.array(ids), torch.ones(len(ids), dim), path="new")


CASES = [
    Case("encode", "wrong type", lambda: tables.encode([[1.0]], "int4"), "vectors are a list"),
    Case("encode", "wrong type", lambda: tables.encode(ROWS.long(), "int4"), "vectors is torch.int64"),
    Case("encode", "nan", lambda: tables.encode(NAN, "int4"), "Row 2 cannot be encoded as int4: element 0 is nan"),
    Case("encode", "empty", lambda: tables.encode(ROWS[:0], "int4"), gives=lambda rows: rows.shape == (0, 8)),
    Case("encode", "unknown", lambda: tables.encode(ROWS, "int4", "best"), "rounding is 'best'"),
    Case("encode", "mismatched", lambda: tables.encode(ROWS[:, :3], "int4"), "a multiple of"),
    Case("gather_rows", "wrong type", lambda: tables.gather_rows([[1.0]]), "table is a list; expected a tensor"),
    Case("gather_rows", "mismatched", lambda: tables.gather_rows(ROWS[0]), r"has the shape \[8\]"),
    Case("gather_rows", "empty", lambda: tables.gather_rows(ROWS[:0]), gives=lambda rows: rows.shape == (0, 8)),
    Case("check_encodable", "nan", lambda: tables.check_encodable(NAN, "fp16"), "Row 2 cannot be encoded"),
    Case("check_encodable", "wrong type", lambda: tables.check_encodable("rows", "fp16"), "vectors are a str"),
    Case("decode", "wrong type", lambda: tables.decode(ROWS, 8, "int4"), "rows is torch.float32"),
    Case("decode", "mismatched", lambda: tables.decode(torch.zeros(2, 5, dtype=torch.uint8), 8, "int4"), "rows have 5 bytes"),
    Case("row_bytes", "unknown", lambda: tables.row_bytes(0, "int4"), "dim is 0"),
    Case("row_bytes", "mismatched", lambda: tables.row_bytes(3, "int4"), "a multiple of"),
    Case("find_neighbors", "mismatched", lambda: tables.find_neighbors(ROWS, ROWS[:, :4], 2), "need one width"),
    Case("find_neighbors", "unknown", lambda: tables.find_neighbors(ROWS, ROWS, 0), "k is 0"),
    Case("find_neighbors", "wrong type", lambda: tables.find_neighbors([[1.0]], ROWS, 1), "queries is a list"),
    Case(
        "find_neighbors",
        "empty",
        lambda: tables.find_neighbors(ROWS, ROWS[:0], 2),
        gives=lambda found: found[1].shape == (6, 0),
    ),
    Case("fit_alignment", "unknown", lambda: tables.fit_alignment("turn", {"pin": (ROWS, ROWS)}), "symmetry is 'turn'"),
    Case(
        "fit_alignment", "wrong type", lambda: tables.fit_alignment("rotation", {"pin": ROWS}), "expected .old rows, new rows."
    ),
    Case("fit_alignment", "nan", lambda: tables.fit_alignment("rotation", {"pin": (ROWS, NAN)}), "not finite"),
    Case(
        "fit_alignment", "empty", lambda: tables.fit_alignment("rotation", {"pin": (ROWS[:0], ROWS[:0])}), "no row is in both"
    ),
    Case("fit_alignment", "empty", lambda: tables.fit_alignment("rotation", {}), "at least one table"),
    Case("fit_alignment", "mismatched", lambda: tables.fit_alignment("rotation", {"pin": (ROWS, ROWS[:, :4])}), "of one width"),
    Case(
        "align_snapshot", "wrong type", lambda: tables.align_snapshot("a", "old", "new", "signs"), "new is a str; expected Snap"
    ),
    Case("align_snapshot", "mismatched", lambda: tables.align_snapshot("a", *two([1, 2], dim=4), "signs"), "has dimension"),
    Case("align_snapshot", "empty", lambda: tables.align_snapshot("a", *two([77]), "rotation"), "no row is in both"),
    Case("compare_snapshots", "mismatched", lambda: tables.compare_snapshots(*two([1, 2], dim=4)), "cannot be compared"),
    Case("compare_snapshots", "wrong type", lambda: tables.compare_snapshots(*two(["a", "b"])), "table 'pin'"),
    Case("compare_snapshots", "wrong type", lambda: tables.compare_snapshots("old", "new"), "old is a str; expected Snapshot"),
    Case(
        "compare_snapshots", "unknown", lambda: tables.compare_snapshots(*two([77])), gives=lambda d: d["pin"].num_matched == 0
    ),
    Case("compare_snapshots", "duplicated", lambda: write(pa.array([1, 1, 2, 3, 4, 5])), "occurs twice"),
    Case("compare_snapshots", "nan", lambda: write(pa.array(range(6)), NAN), "Table pin: Row 2"),
    Case("compare_snapshots", "mismatched", lambda: write(pa.array(range(5))), "must match row by row"),
    Case("compare_snapshots", "empty", lambda: Snapshot.write("s", facet="kge", tables={}), "at least one table"),
    Case(
        "accumulate_rows", "mismatched", lambda: tables.accumulate_rows(torch.zeros(3, dtype=torch.int32), ROWS), "gradients is"
    ),
    Case(
        "plan_precision",
        "mismatched",
        lambda: tables.plan_precision(ROWS, np.ones(3), 999),
        r"frequencies are \[3\]; expected \[6\]",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bad_input_gets_our_own_words(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case.run()


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([1.5], TypeError),
        ([None], ValueError),
        ([1, 1], ValueError),
        ([[1]], TypeError),
        (np.zeros((2, 2), np.int64), ValueError),
    ],
)
def test_ids_that_are_none_are_refused(ids: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        IdMap.exact(ids)


def test_a_warm_starts_settings_are_refused_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(pa.array(range(6)))
    with pytest.raises(ValueError, match="WarmStartConfig: there is no field 'pul'; did you mean 'pull'"):
        WarmStart.load("s", pul=1.0)


def test_every_public_function_is_asked() -> None:
    left_out = {
        "remove_stale_temporaries": "it takes a folder, and is tested in tests/artifacts/test_artifact.py",
        "relative_error": "plain arithmetic",
        "measure_recall": "of a search, in tests/tables/searching/test_index.py",
    }
    assert missing_functions(tables, CASES, left_out) == set()
