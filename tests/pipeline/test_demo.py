"""The whole flow on the sample, once, through the command; its document is checked against sources of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from multifacet.ranking import Examples

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


def run_demo(work_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "multifacet.pipeline.cli", "demo", "--quick", "--work-dir", str(work_dir), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def document(work_dir: Path) -> dict[str, Any]:
    return run_demo(work_dir)


def stage_folder(work_dir: Path, name: str) -> Path:
    return next(work_dir.glob(f"{name}-????????????"))


def test_graph_counts_equal_plain_sql_over_the_files(document: dict[str, Any]) -> None:
    with duckdb.connect() as raw:
        for file in SAMPLE.glob("*.parquet"):
            raw.execute(f"CREATE VIEW {file.stem} AS FROM '{file}'")

        def count(query: str) -> int:
            return int(raw.execute(f"SELECT count(*) FROM ({query})").fetchall()[0][0])

        purchase = "SELECT DISTINCT household_id, store_id, week, product_id FROM transactions AS t"
        promoted = "SELECT 1 FROM promotions AS p WHERE (p.product_id, p.store_id, p.week) = (t.product_id, t.store_id, t.week)"
        assert document["graph"]["edges"] == {
            "responds": count(f"{purchase} WHERE EXISTS ({promoted})"),
            "buys": count(f"{purchase} WHERE NOT EXISTS ({promoted})"),
            "redeems": count(f"{purchase} WHERE coupon_disc > 0"),
            "made_by": count("SELECT product_id FROM products"),
            "in": count("SELECT product_id FROM products WHERE product_category IS NOT NULL"),
            "covers": count("SELECT DISTINCT campaign_id, product_id FROM coupons"),
            "targets": count("SELECT DISTINCT campaign_id, household_id FROM campaigns"),
        }
        assert document["graph"]["nodes"] == {
            "user": count("SELECT DISTINCT household_id FROM transactions"),
            "pin": count(
                "SELECT product_id FROM products UNION SELECT product_id FROM transactions UNION SELECT product_id FROM coupons"
            ),
            "advertiser": count("SELECT DISTINCT manufacturer_id FROM products"),
            "category": count("SELECT DISTINCT product_category FROM products WHERE product_category IS NOT NULL"),
            "campaign": count("SELECT campaign_id FROM campaign_descriptions"),
        }


def test_every_load_adds_up(document: dict[str, Any]) -> None:
    for load in document["graph"]["loads"]:
        assert load["read"] == load["loaded"] + load["already_there"] + sum(load["rejected"].values())


def test_metrics_are_those_of_the_scores(document: dict[str, Any], work_dir: Path) -> None:
    examples = Examples.load(stage_folder(work_dir, "examples_demand") / "test.parquet")
    known = np.isfinite(examples.cvr_label)
    for arm in ("no_ids", "scratch", "pretrained"):
        scores = np.load(stage_folder(work_dir, f"{arm}_demand") / "test_scores.npy")
        metrics = document["metrics"][arm]
        assert metrics["ctr"]["roc_auc"] == pytest.approx(roc_auc_score(examples.ctr_label, scores[:, 0]), abs=1e-6)
        assert metrics["cvr"]["roc_auc"] == pytest.approx(roc_auc_score(examples.cvr_label[known], scores[known, 1]), abs=1e-6)
        for row in metrics.values():
            assert row["roc_auc_low"] <= row["roc_auc"] <= row["roc_auc_high"]
            assert row["log_loss"] > 0
            assert row["normalized_entropy"] > 0


def test_differences_are_those_of_all_seeds(document: dict[str, Any], work_dir: Path) -> None:
    examples = Examples.load(stage_folder(work_dir, "examples_demand") / "test.parquet")
    num_seeds = document["config"]["num_seeds"]
    assert num_seeds > 1
    areas = {}
    for arm in ("no_ids", "scratch", "pretrained"):
        names = [f"{arm}_demand" + (f"_seed{seed}" if seed else "") for seed in range(num_seeds)]
        areas[arm] = [
            roc_auc_score(examples.ctr_label, np.load(stage_folder(work_dir, name) / "test_scores.npy")[:, 0]) for name in names
        ]
        assert document["seeds"][arm]["ctr"]["roc_auc_by_seed"] == pytest.approx(areas[arm], abs=1e-6)
        assert len(set(areas[arm])) == num_seeds
    for arm in ("scratch", "pretrained"):
        row = document["differences"][arm]["ctr"]
        assert row["difference"] == pytest.approx(np.mean(areas[arm]) - np.mean(areas["no_ids"]), abs=1e-6)
        assert row["difference_low"] < row["difference"] < row["difference_high"]
        assert row["num_seeds"] == num_seeds


def test_a_task_that_validation_says_tables_hurt_is_named(document: dict[str, Any], work_dir: Path) -> None:
    num_seeds = document["config"]["num_seeds"]
    losses = {
        arm: np.mean(
            [
                json.loads((stage_folder(work_dir, name) / "manifest.json").read_text())["result"]["validation"][
                    "valid_cvr_log_loss"
                ]
                for name in [f"{arm}_demand" + (f"_seed{seed}" if seed else "") for seed in range(num_seeds)]
            ]
        )
        for arm in ("no_ids", "pretrained")
    }
    named = [text for text in document["warnings"] if "CVR is predicted worse with pretrained tables" in text]
    assert len(named) == int(losses["pretrained"] > losses["no_ids"])


def test_served_scores_are_the_offline_scores_of_one_version(document: dict[str, Any]) -> None:
    serving = document["serving"]
    assert serving["requests"] > 100
    assert serving["wrong_version"] == 0
    assert serving["max_abs_diff"] < 1e-5
    assert 0 < serving["p50_ms"] <= serving["p99_ms"]
    assert serving["version"] == document["release"]["version"]


def test_quantised_tables_take_the_bytes_that_the_formats_say(document: dict[str, Any]) -> None:
    quantization = document["quantization"]
    assert list(quantization) == ["fp32", "fp16", "int8", "int4"]
    dim = document["config"]["kge"]["dim"]
    rows = quantization["fp32"]["bytes"] / (4 * dim)
    assert {name: row["bytes"] / rows for name, row in quantization.items()} == {
        "fp32": 4 * dim,
        "fp16": 2 * dim,
        "int8": dim + 4,
        "int4": dim / 2 + 4,
    }
    assert quantization["fp32"]["ctr_roc_auc"] == pytest.approx(document["metrics"]["pretrained"]["ctr"]["roc_auc"], abs=1e-5)


def test_snapshots_lead_back_to_a_window_before_fine_tuning(document: dict[str, Any]) -> None:
    pretraining = document["pretraining"]
    assert {facet: row["fingerprint"] for facet, row in pretraining.items()} == document["snapshots"]
    for row in pretraining.values():
        assert row["window"]["as_of"] == "2017-09-04T04:00:00"  # week 37 begins
        assert {"user", "pin", "advertiser"} <= set(row["rows"])


def test_the_report_stands_alone(document: dict[str, Any]) -> None:
    page = Path(document["report"]).read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("data:image/svg+xml;base64,") == 6
    assert document["release"]["version"][:16] in page


def test_a_second_run_reuses_every_stage_and_says_so(document: dict[str, Any], work_dir: Path) -> None:
    again = run_demo(work_dir)
    assert all(stage["reused"] for stage in again["stages"])
    assert not any(stage["reused"] for stage in document["stages"])
    for key in ("graph", "snapshots", "metrics", "quantization", "serving"):
        assert again[key] == document[key]
