"""`multifacet init`, `run --plan`, `run --until load` and `runs`, as a user types them."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.daily.writing import guess


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three days of events, a file a day."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "log"
    folder.mkdir()
    for number in range(3):
        day = dt.date(2026, 11, 27) + dt.timedelta(days=number)
        pd.DataFrame(
            {
                "customer_id": generator.integers(0, 20, 50),
                "sku": [f"s{number}" for number in generator.integers(0, 9, 50)],
                "shown_at": pd.Timestamp(day) + pd.to_timedelta(generator.integers(0, 86_400, 50), unit="s"),
                "price": generator.random(50),
                "hour": generator.integers(0, 24, 50),
                "clicked": generator.integers(0, 2, 50),
            }
        ).to_parquet(folder / f"{day}.parquet")
    return folder


def test_columns_are_told_by_name_and_type(log: Path) -> None:
    found = guess(log / "2026-11-29.parquet")
    assert {name: found[name] for name in ("user", "pin", "time", "label")} == {
        "user": "customer_id",
        "pin": "sku",
        "time": "shown_at",
        "label": "clicked",
    }
    assert found["dense"] == ["price"]
    assert found["id_types"] == {"user": "int64", "pin": "string"}


def test_init_writes_a_pipeline_that_runs(log: Path, tmp_path: Path, run: Any) -> None:
    file = tmp_path / "pipeline.toml"
    code, output, _ = run("init", file, "--events", log / "2026-11-29.parquet")
    assert code == 0
    assert "wrote" in output
    assert file.read_text().count("#") > 10  # commented
    pipeline = read_pipeline(file)
    assert pipeline.load[0].files == str(log / "{day}.parquet")
    assert pipeline.load[0].where == "clicked = 1"
    assert pipeline.ranker.examples is not None
    assert pipeline.ranker.examples.columns.dense == ("price",)

    code, output, _ = run("run", file, "--day", "2026-11-29", "--plan", "--json")
    assert code == 0
    (plan,) = json.loads(output)
    assert [(step["name"], step["action"]) for step in plan["steps"]][:2] == [("load", "run"), ("contrastive", "run")]
    assert not pipeline.store.path.exists()  # a plan changes nothing
    assert not pipeline.folder.exists()

    code, output, _ = run("run", file, "--backfill", "2026-11-27..2026-11-29", "--until", "load", "--json")
    assert code == 0
    assert [record["status"] for record in json.loads(output)] == ["partial"] * 3
    clicks = sum(int(pd.read_parquet(path)["clicked"].sum()) for path in log.iterdir())
    assert sum(step["result"]["loads"][0]["loaded"] for record in json.loads(output) for step in record["steps"]) == clicks

    code, output, _ = run("runs", file, "--day", "2026-11-28", "--json")
    (record,) = json.loads(output)
    assert (record["run"], record["day"], record["reason"]) == (2, "2026-11-28", "done until load")
    assert "2026-11-29" in run("runs", file)[1]

    # What a user writes over by mistake is refused.
    code, _, errors = run("init", file, "--events", log / "2026-11-29.parquet")
    assert code == 1
    assert "exists: remove it, or name another file" in errors


def test_what_cannot_be_told_is_asked_for(log: Path, tmp_path: Path, run: Any) -> None:
    file = tmp_path / "odd.parquet"
    pd.read_parquet(log / "2026-11-29.parquet").rename(columns={"sku": "thing"}).to_parquet(file)
    code, _, errors = run("init", tmp_path / "p.toml", "--events", file)
    assert code == 2
    assert "say which is which by --pin COLUMN" in " ".join(errors.replace("│", " ").split())
    code, _, errors = run("init", tmp_path / "p.toml", "--events", file, "--pin", "item")
    assert code == 2
    assert "has no column 'item'" in " ".join(errors.replace("│", " ").split())
    assert run("init", tmp_path / "p.toml", "--events", file, "--pin", "thing")[0] == 0


def test_wrong_usage_ends_with_2(log: Path, tmp_path: Path, run: Any) -> None:
    run("init", tmp_path / "p.toml", "--events", log / "2026-11-29.parquet")
    assert run("run", tmp_path / "p.toml")[0] == 2
    assert run("run", tmp_path / "p.toml", "--day", "yesterday")[0] == 2
    assert run("run", tmp_path / "p.toml", "--backfill", "2026-11-27")[0] == 2
    (tmp_path / "p.toml").write_text("[stor]\n")
    code, _, errors = run("run", tmp_path / "p.toml", "--day", "2026-11-29")
    assert code == 1
    assert "there is no section or key [stor]; did you mean [store]?" in errors


def test_ids_that_a_number_would_change_are_strings(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,pin,time\n0007,5,2026-01-01\n8,6,2026-01-02\n", encoding="utf-8")
    assert guess(tmp_path / "events.csv")["id_types"] == {"user": "string", "pin": "int64"}
