"""Each failure signature of a ranker, produced on purpose and read in the diagnosis; none where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from multifacet import ranking, serving
from multifacet.artifacts import Artifact, ArtifactWriter
from multifacet.pipeline.diagnosis.diagnose import diagnose
from multifacet.pipeline.diagnosis.finding import Finding
from multifacet.pipeline.diagnosis.gates import GatesSection
from multifacet.pipeline.diagnosis.model_checks import check_evaluation, check_model, id_coverage

from .conftest import Trained, draw, draw_rows, flipped

GATES = GatesSection()


def measured(model: ranking.ExportedModel, examples: Any, *, beside: Any = None, precision: str = "int4") -> list[Finding]:
    scores: Any = model.score(examples, precision)  # type: ignore[arg-type]
    evaluation = {
        "precision": precision,
        "coverage": id_coverage(model, examples),
        "metrics": ranking.evaluate(scores, examples),
        "precision_change": ranking.compare(scores, model.score(examples), examples),
        "serving_change": None if beside is None else ranking.compare(scores, beside, examples),
    }
    return check_evaluation(evaluation, GATES)


def levels(findings: list[Finding]) -> dict[tuple[str, str], str]:
    return {(found.check, found.subject): found.level for found in findings}


def rewritten(model: Path, path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a model whose tables are others."""
    artifact = Artifact.open(model)
    with ArtifactWriter(path, kind="ranking-model") as writer:
        for name in artifact.manifest["files"]:
            target = writer.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.startswith("vectors/"):
                save_file({"weights": change(name, load_file(artifact.file(name))["weights"]).contiguous()}, target)
            else:
                target.write_bytes(artifact.file(name).read_bytes())
        own = {"files", "kind", "schema_version"}
        writer.manifest |= {key: value for key, value in artifact.manifest.items() if key not in own}
    return path


def test_a_healthy_ranker_gives_no_alarm(healthy: Trained) -> None:
    model = ranking.load_model(healthy.path)
    findings = check_model(model.artifact.manifest, GATES)
    findings += measured(model, healthy.test, beside=model.score(healthy.test, "int4"))
    checks = {found.check for found in findings}
    assert checks == {
        *("window gap", "window overlap", "frozen tables", "id coverage", "calibration", "AUC change", "precision"),
    }
    assert {found.level for found in findings} == {"ok"}, [found.told for found in findings if found.level != "ok"]


@pytest.mark.parametrize(("gap_days", "level"), [(29.0, "ok"), (31.0, "warn"), (91.0, "stop")])
def test_stale_tables(healthy: Trained, gap_days: float, level: str) -> None:
    manifest = json.loads(json.dumps(ranking.load_model(healthy.path).artifact.manifest))
    begins = np.datetime64(manifest["lineage"]["tables"]["kge"]["as_of"]) + np.timedelta64(int(gap_days * 24), "h")
    manifest["lineage"]["examples"]["since"] = str(begins)
    found = next(found for found in check_model(manifest, GATES) if found.check == "window gap")
    assert (found.level, found.value) == (level, gap_days)
    if level != "ok":
        assert f"{gap_days:.1f} days before fine-tuning" in found.told
        assert "stale" in found.cause
        assert f"--as-of {begins}" in found.mend


@pytest.mark.slow
def test_stale_and_frozen_tables_through_a_training(train: Callable[..., Trained]) -> None:
    trained = train(gap_days=120.0, freeze_tables=True, max_epochs=1)
    findings = diagnose([str(trained.path)])
    assert levels(findings)["window gap", "kge"] == "stop"
    frozen = next(found for found in findings if found.check == "frozen tables")
    assert (frozen.level, frozen.value) == ("ok", 0.0)
    assert "as freeze_tables asks" in frozen.told
    start, table = trained.snapshot.vectors("pin"), ranking.load_model(trained.path).tables["pin_kge"]
    cosine = torch.nn.functional.cosine_similarity(start, table[: len(start)])
    assert float(cosine.min()) > 0.9999  # they really stayed


def test_tables_that_have_seen_the_labels(healthy: Trained) -> None:
    manifest = json.loads(json.dumps(ranking.load_model(healthy.path).artifact.manifest))
    manifest["lineage"]["tables"]["kge"]["as_of"] = "2025-03-06T00:00:00"
    found = next(found for found in check_model(manifest, GATES) if found.check == "window overlap")
    assert (found.level, found.value) == ("stop", 5.0)
    assert "seen the labels" in found.cause


def test_a_rate_of_zero_is_frozen_too(healthy: Trained) -> None:
    config = {"facets": ["kge", "contrastive"], "table_lr": 0.02, "facet_lrs": {"kge": 0.0}}
    findings = check_model({"config": config}, GATES)
    assert levels(findings) == {("frozen tables", "kge"): "stop", ("frozen tables", "contrastive"): "ok"}
    assert "freeze_tables if that is meant" in findings[0].mend


def test_ids_without_a_row(healthy: Trained) -> None:
    model = ranking.load_model(healthy.path)
    found = {found.subject: found for found in measured(model, draw(3000, 2, first_pin=30)) if found.check == "id coverage"}
    assert found["user"].level == "ok"
    assert found["pin"].level == "stop"
    assert found["pin"].value == pytest.approx(0.25, abs=0.03)
    assert "pretrain on a window that has these ids" in found["pin"].mend


def test_predictions_that_are_too_high(healthy: Trained) -> None:
    model = ranking.load_model(healthy.path)
    found = next(found for found in measured(model, flipped(healthy.test, 0.5)) if found.check == "calibration")
    assert found.level == "stop"
    assert found.value is not None
    assert found.value > 0.5


def test_a_model_that_is_worse_than_what_serves(healthy: Trained, tmp_path: Path) -> None:
    def shuffle(name: str, table: torch.Tensor) -> torch.Tensor:
        return table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]

    broken = ranking.load_model(rewritten(healthy.path, tmp_path / "broken", shuffle))
    good = ranking.load_model(healthy.path)
    found = next(
        found
        for found in measured(broken, healthy.test, beside=good.score(healthy.test, "int4"))
        if found.check == "AUC change"
    )
    assert found.level == "stop"
    assert "against the release that serves now" in found.told
    # The other way round is no fault: a release may be far better than the last.
    better = measured(good, healthy.test, beside=broken.score(healthy.test, "int4"))
    assert levels(better)["AUC change", "ctr"] == "ok"


@pytest.mark.parametrize(
    ("deviation", "difference", "level"), [(0.0, -0.003, "warn"), (0.0015, -0.003, "ok"), (0.0015, -0.006, "warn")]
)
def test_a_drop_that_another_seed_may_bring_is_no_alarm(deviation: float, difference: float, level: str) -> None:
    change = {"difference": difference, "difference_low": difference - 0.001, "difference_high": difference + 0.001}
    evaluation = {
        "precision": "int4",
        "coverage": {},
        "precision_change": {},
        "serving_change": {"ctr": change},
        "metrics": {"ctr": {"calibration": 1.0, "num_positives": 100, "num_examples": 1000}},
    }
    findings = check_evaluation(evaluation, GatesSection(auc_seed_deviation=deviation))
    assert levels(findings)["AUC change", "ctr"] == level


@pytest.mark.slow
def test_rows_that_int4_cannot_hold(train: Callable[..., Trained], tmp_path: Path) -> None:
    # One number takes the whole scale of its row: the model reads past it, INT4 keeps little else.
    trained = train(long=60.0, pretrained_norm=60.0, table_lr=0.01, max_epochs=12)
    found = next(found for found in measured(ranking.load_model(trained.path), trained.test) if found.check == "precision")
    assert found.level == "stop"
    assert "INT4 against FP32" in found.told
    assert "int8" in found.mend
    exact = measured(ranking.load_model(trained.path), trained.test, precision="int8")
    assert levels(exact)["precision", "ctr"] == "ok"
    serving.publish(trained.path, tmp_path / "release")
    findings = diagnose([str(tmp_path / "release")], against=trained.path)
    assert [found.check for found in findings].count("row error") == 2


def test_a_release_is_judged_alike_whole_in_shards_and_as_a_delta(healthy: Trained, tmp_path: Path) -> None:
    serving.publish(healthy.path, tmp_path / "whole")
    serving.publish(healthy.path, tmp_path / "shards", shards=3)
    serving.publish_delta(healthy.path, tmp_path / "delta", tmp_path / "whole")
    told = {
        name: {(found.check, found.subject): found.value for found in diagnose([str(tmp_path / name)], against=healthy.path)}
        for name in ("whole", "shards", "delta")
    }
    assert told["delta"] == told["whole"]
    assert set(told["shards"]) == set(told["whole"])
    for key, value in told["whole"].items():
        assert told["shards"][key] == pytest.approx(value, rel=0.05, abs=1e-6), key  # rows in another order


def test_the_command_says_it_all_and_ends_with_1(healthy: Trained, tmp_path: Path, run: Any) -> None:
    pq.write_table(draw_rows(3000, 2), tmp_path / "test.parquet")
    code, output, _ = run("diagnose", healthy.path, "--examples", tmp_path / "test.parquet", "--json")
    document = json.loads(output)
    assert code == 0, document
    assert document["level"] == "ok"
    assert {"check", "subject", "value", "limit", "level", "told", "cause", "mend"} == set(document["findings"][0])
    code, output, _ = run("diagnose", healthy.path, "--set", "window_gap_stop_days=-1")
    assert code == 1
    assert "cause: stale pretraining" in output
    assert "mend:  pretrain kge up to 2025-03-01" in output
