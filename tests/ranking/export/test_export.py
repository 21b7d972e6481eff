from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from multifacet.artifacts import ArtifactError
from multifacet.ranking import RankingResult, arm_config, export_model, load_model, quantized_scores, train
from multifacet.tables import Precision, decode, encode, row_bytes
from tests.ranking.conftest import DIM, Planted


@pytest.fixture(scope="module")
def result(planted: Planted) -> RankingResult:
    config = arm_config("pretrained", dim=DIM, batch_size=256, max_epochs=1, hidden=(32, 16))
    return train(planted.train, planted.valid, config, snapshots=planted.snapshots)


@pytest.fixture(scope="module")
def path(result: RankingResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pretrained"
    export_model(path, result, metrics={"test_ctr_roc_auc": 0.5})
    return path


def test_a_loaded_model_scores_as_the_trained_one(planted: Planted, result: RankingResult, path: Path) -> None:
    loaded = load_model(path)
    np.testing.assert_allclose(loaded.score(planted.test), result.score(planted.test), atol=1e-6)
    one = planted.test.take(np.array([3]))
    np.testing.assert_allclose(loaded.score(one), result.score(one), atol=1e-6)


def test_the_manifest_tells_serving_what_to_look_up(result: RankingResult, path: Path) -> None:
    manifest = load_model(path).artifact.manifest
    assert manifest["name"] == "pretrained"
    assert manifest["dense_features"] == ["first", "second", "third"]
    assert manifest["tasks"] == ["ctr", "cvr"]
    assert [table["name"] for table in manifest["tables"]] == [
        f"{feature}_{facet}" for facet in ("contrastive", "kge") for feature in ("user", "pin", "advertiser")
    ]
    assert manifest["tables"][1] == {
        "name": "pin_contrastive",
        "feature": "pin",
        "node_type": "pin",
        "facet": "contrastive",
        "rows": 601,
        "dim": DIM,
        "vectors": "vectors/pin_contrastive.safetensors",
        "id_map": "pin",
    }
    assert manifest["parents"] == list(result.parents)
    assert manifest["config"] == result.config.model_dump(mode="json")
    assert manifest["metrics"]["test_ctr_roc_auc"] == 0.5
    assert manifest["metrics"]["valid_ctr_log_loss"] == result.metrics["valid_ctr_log_loss"]


@pytest.mark.parametrize("precision", get_args(Precision))
def test_quantised_scores_are_those_of_decoded_rows(
    planted: Planted, result: RankingResult, path: Path, precision: Precision
) -> None:
    scores, num_bytes = quantized_scores(path, precision, planted.test)
    exact = result.score(planted.test)
    rows = sum(spec.num_rows for spec in result.model.specs)
    assert num_bytes == rows * row_bytes(DIM, precision)
    before = {spec.name: result.model.table(spec.name).clone() for spec in result.model.specs}
    try:
        for spec in result.model.specs:
            table = result.model.table(spec.name)
            table.copy_(decode(encode(table, precision), DIM, precision))
        np.testing.assert_allclose(scores, result.score(planted.test), atol=1e-6)
    finally:
        for name, weights in before.items():
            result.model.table(name).copy_(weights)
    difference = np.abs(scores - exact).max()
    assert difference < {"fp32": 1e-6, "fp16": 2e-3, "int8": 2e-2, "int4": 0.4}[precision]
    assert precision in {"fp32", "fp16"} or difference > 1e-4


def test_equal_models_give_equal_tables_on_disk(result: RankingResult, path: Path, tmp_path: Path) -> None:
    again = export_model(tmp_path / "again", result, metrics={"test_ctr_roc_auc": 0.5})
    first = load_model(path).artifact.manifest["files"]
    for name, described in again.manifest["files"].items():
        if name != "upper.pt2":  # a zip archive, which holds more than the weights
            assert described == first[name]


def test_a_program_names_no_folder_of_the_machine_that_trained(path: Path, repository: Path) -> None:
    with zipfile.ZipFile(path / "upper.pt2") as archive:
        for member in archive.namelist():
            assert str(repository).encode() not in archive.read(member), member


def test_a_model_without_tables_survives_too(planted: Planted, tmp_path: Path) -> None:
    config = arm_config("no_ids", dim=DIM, max_epochs=1, batch_size=256)
    result = train(planted.train, planted.valid, config)
    export_model(tmp_path / "model", result)
    scores, num_bytes = quantized_scores(tmp_path / "model", "int4", planted.test)
    np.testing.assert_allclose(scores, result.score(planted.test), atol=1e-6)
    assert num_bytes == 0


@pytest.mark.slow
def test_damaged_or_misfitting_models_are_refused(planted: Planted, result: RankingResult, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        export_model(path, result)
    broken = tmp_path / "broken"
    export_model(broken, result)
    victim = broken / "vectors" / "user_kge.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match="user_kge"):
        load_model(broken)
    renamed = replace(planted.test, dense_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="model pretrained was trained on"):
        load_model(path).score(renamed)
    result.model.table("pin_kge")[4, 0] = torch.inf
    export_model(tmp_path / "diverged", result)
    with pytest.raises(ValueError, match="Row 4"):
        quantized_scores(tmp_path / "diverged", "int4", planted.test)
