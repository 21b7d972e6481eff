"""Periods of a store of one's own: named by number or by time, or inferred from those that exist."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Recipe, Relation
from multifacet.pipeline.cli import app
from multifacet.pipeline.commands.experiment import _source
from multifacet.pipeline.periods import choose_splits, infer_splits, parse_span, read_periods

MONTHS = {month: dt.datetime(2025, month, 1) for month in range(1, 13)}
WEEKS = {week: dt.datetime(2025, 1, 1) + dt.timedelta(weeks=week - 1) for week in range(1, 54)}


def test_the_journeys_own_periods_are_inferred() -> None:
    assert infer_splits(WEEKS) == Recipe.load("completejourney").splits


@given(st.sets(st.integers(-5, 400), min_size=4, max_size=120))
def test_inferred_parts_follow_each_other_and_take_every_period(numbers: set[int]) -> None:
    ordered = sorted(numbers)
    spans = [span for _, span in infer_splits(dict.fromkeys(ordered, dt.datetime(2025, 1, 1)))]
    taken = [[number for number in ordered if first <= number <= last] for first, last in spans]
    assert [number for part in taken for number in part] == ordered
    assert all(taken)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("3..5", (3, 5)),
        (" 3 .. 5 ", (3, 5)),
        ("12", (12, 12)),
        ("2025-03-01..2025-06-01", (3, 5)),
        ("2025-02-15..2025-06-02", (3, 6)),
        ("2025-03-01T01:00:00+01:00..2025-03-31", (3, 3)),
    ],
)
def test_periods_and_times_are_read(text: str, span: tuple[int, int]) -> None:
    assert parse_span(text, MONTHS, "--test") == span


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0..5", "has no period 0; it has 12 periods, 1 "),
        ("3..13", "has no period 13"),
        ("5..3", "the first period comes behind the last"),
        ("", "expected periods, such as 37..46"),
        ("3..", "expected periods"),
        ("3-5", "expected periods"),
        ("spring", "expected periods"),
        ("spring..summer", "'spring' is not a time"),
        ("2026-01-01..2026-02-01", "no period begins within these times"),
        ("2025-06-01..2025-03-01", "no period begins within these times"),
    ],
)
def test_what_names_no_periods_is_refused(text: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        parse_span(text, MONTHS, "--test")


def test_parts_that_are_not_named_are_what_is_before_and_behind() -> None:
    splits = choose_splits(MONTHS, finetune="7..8", validate="2025-09-01..2025-10-01")
    assert dict(splits) == {"pretraining": (1, 6), "training": (7, 8), "validation": (9, 9), "test": (10, 12)}
    splits = choose_splits(MONTHS, pretrain="2..3", finetune="7..8", validate="10", test="12")
    assert dict(splits) == {"pretraining": (2, 3), "training": (7, 8), "validation": (10, 10), "test": (12, 12)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetune": "7"}, "--finetune and --validate go together"),
        ({"test": "7"}, "--finetune and --validate go together"),
        ({"finetune": "1..3", "validate": "4"}, "no periods before --finetune"),
        ({"finetune": "4..6", "validate": "7..12"}, "no periods behind --validate"),
        ({"finetune": "4..6", "validate": "6..7"}, "--finetune ends with period 6, and --validate begins with 6"),
        ({"finetune": "7..8", "validate": "4"}, "--finetune ends with period 8, and --validate begins with 4"),
        ({"finetune": "4", "validate": "5", "test": "3"}, "--validate ends with period 5, and --test begins with 3"),
        ({"finetune": "4", "validate": "5", "pretrain": "1..4"}, "--pretrain ends with period 4"),
    ],
)
def test_parts_that_do_not_follow_each_other_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        choose_splits(MONTHS, **options)


def test_too_few_periods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has the periods \[1, 2, 3\]: .* four at least"):
        infer_splits(dict(list(MONTHS.items())[:3]))


def write_store(path: Path, num_periods: int) -> Path:
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")),
        relations=(Relation(src="user", name="buys", dst="pin", surface="offsite"),),
    )
    starts = [dt.datetime(2025, 1, 1) + dt.timedelta(days=7 * number) for number in range(num_periods)]
    table = pa.table(
        {
            "period": pa.array(range(1, num_periods + 1), pa.int32()),
            "start_time": pa.array(starts, pa.timestamp("us")),
            "end_time": pa.array([start + dt.timedelta(days=7) for start in starts], pa.timestamp("us")),
        }
    )
    with GraphStore.create(path, schema) as store:
        store.load_table("periods", table)
    return path


def test_an_experiment_takes_a_store_with_any_number_of_periods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "s.duckdb", 8)
    assert list(read_periods(store)) == list(range(1, 9))
    nothing = dict.fromkeys(("pretrain", "finetune", "validate", "test"))
    source = _source("completejourney", store, None, nothing, quick=False)
    assert dict(source.splits) == {"pretraining": (1, 4), "training": (5, 6), "validation": (7, 7), "test": (8, 8)}
    assert "training 5..6" in capsys.readouterr().err.replace("\n", " ")
    source = _source("completejourney", store, None, nothing | {"finetune": "3..4", "validate": "5"}, quick=False)
    assert source.splits.test == (6, 8)
    run = CliRunner().invoke
    assert run(app, ["experiment", "ablation", "--finetune", "3"]).exit_code == 2
    assert run(app, ["experiment", "ablation", "--store", str(store), "--finetune", "3..4", "--validate", "9"]).exit_code == 2
    answer = run(app, ["train", str(store), str(tmp_path / "m"), "--arm", "scratch", "--training", "3", "4"])
    assert answer.exit_code == 2
    assert "--training and --validation go together" in answer.output.replace("\n", " ").replace("│", "").replace("  ", " ")
