"""Tables in FP16: as good as in FP32, half as large, and the same bits after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import ranking.optimizers
from multifacet.ranking import (
    Examples,
    RankingResult,
    RecentPins,
    arm_config,
    export_model,
    load_model,
    quantized_scores,
    train,
)
from multifacet.serving import publish
from multifacet.tables import Lifecycle, Precision, Snapshot, SnapshotTable, encode
from multifacet.tables.configuration import ConfigurationError
from multifacet.tables.rounded import step_rounded

from .conftest import DIM, Planted
from .test_resume import stopping_after
from .test_training import SMALL

EXACT: dict[str, Any] = SMALL | {"dropout": 0.0}  # tables of another type draw other numbers before dropout does
HALF: dict[str, Any] = EXACT | {"table_dtype": "fp16"}
EVERYTHING: dict[str, Any] = HALF | {
    "facet_lrs": {"contrastive": 0.1},
    "row_lr_power": 0.5,
    "thaw_after_steps": 3,
    "reinit_tables": True,
    "max_epochs": 2,
    "patience": 9,
    "dropout": 0.1,
}


def with_recent(examples: Examples) -> Examples:
    pins = 1000 + np.random.default_rng(len(examples)).integers(0, 600, (len(examples), 3))
    return replace(examples, recent=RecentPins(pin_ids=pins, num_recent=(examples.user_id % 4).astype(np.int32)))


@pytest.fixture(scope="module")
def half(planted: Planted) -> RankingResult:
    config = arm_config("pretrained", **HALF, max_epochs=2)
    return train(planted.train, planted.valid, config, snapshots=planted.snapshots)


@pytest.fixture(scope="module")
def path(half: RankingResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("model") / "half", half).path


def step_nearest(
    table: Tensor, state: Tensor, rows: Tensor, gradients: Tensor, *, lr: float, seed: int, shares: Tensor | None = None
) -> None:
    """Take the step of `step_rounded`, and round to nearest."""
    index = rows.long()
    state[index] += gradients.square().mean(1)
    table[index] = (table[index].float() - lr / state[index].sqrt()[:, None] * gradients).half()


def test_fp16_learns_what_fp32_learns_and_nearest_rounding_does_not(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pins start from one row, whose numbers no step moves by half of their last place; only tables can tell pins apart."""
    generator = np.random.default_rng(3)
    num_pins, value, table_lr = 60, 32.0, 0.002
    liked = generator.random(num_pins) < 0.5
    start = SnapshotTable(ids=pa.array(range(num_pins)), vectors=torch.ones(num_pins, DIM))
    snapshot = Snapshot.write(tmp_path / "kge", facet="kge", tables={"pin": start})
    # No step is longer than lr sqrt(D).
    assert float(torch.tensor(value - table_lr * DIM**0.5).half()) == value

    def draw(examples: Examples) -> Examples:
        pin = generator.integers(0, num_pins, len(examples))
        return replace(examples, pin_id=pin, ctr_label=liked[pin].astype(np.float32))

    examples = draw(planted.train), draw(planted.valid)
    losses = {}
    steps: dict[str, Callable[..., None]] = {"fp32": step_rounded, "fp16": step_rounded, "nearest": step_nearest}
    for name, step in steps.items():
        monkeypatch.setattr(ranking.optimizers, "step_rounded", step)
        fields = {"features": ("pin",), "facets": ("kge",), "pretrained_facets": ("kge",), "pretrained_norm": value * DIM**0.5}
        fields |= {"table_lr": table_lr, "upper_lr": 1e-2, "table_dtype": "fp32" if name == "fp32" else "fp16"}
        config = arm_config("pretrained", **EXACT | fields, max_epochs=6, patience=99)
        losses[name] = train(*examples, config, snapshots=[snapshot]).metrics["valid_ctr_log_loss"]
    assert losses["fp32"] < 0.02
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=0.01)
    assert losses["nearest"] > 0.68


def test_pretrained_tables_are_as_good_in_fp16(planted: Planted, half: RankingResult) -> None:
    config = arm_config("pretrained", **EXACT, max_epochs=2)
    whole = train(planted.train, planted.valid, config, snapshots=planted.snapshots)
    assert {half.model.table(spec.name).dtype for spec in half.model.specs} == {torch.float16}
    assert half.metrics["valid_ctr_log_loss"] == pytest.approx(whole.metrics["valid_ctr_log_loss"], abs=2e-3)


@pytest.mark.parametrize("num_steps", [2, 21])
def test_a_run_that_was_stopped_ends_with_the_same_bits(planted: Planted, tmp_path: Path, num_steps: int) -> None:
    config = arm_config("pretrained", **EVERYTHING)
    results = []
    for stops in (False, True):
        checkpoint = tmp_path / f"checkpoint{stops}"
        if stops:
            lifecycle = Lifecycle(checkpoint=checkpoint, **stopping_after(num_steps))
            with pytest.raises(KeyboardInterrupt):
                train(planted.train, planted.valid, config, snapshots=planted.snapshots, lifecycle=lifecycle)
        lifecycle = Lifecycle(checkpoint=checkpoint, resume=stops)
        result = train(planted.train, planted.valid, config, snapshots=planted.snapshots, lifecycle=lifecycle)
        results.append(result.model.state_dict())
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_the_artefact_has_half_the_bytes_and_scores_alike(planted: Planted, half: RankingResult, path: Path) -> None:
    loaded = load_model(path)
    num_values = sum(spec.num_rows * spec.dim for spec in half.model.specs)
    assert sum(table.numel() * table.element_size() for table in loaded.tables.values()) == 2 * num_values
    size = sum(file.stat().st_size for file in (path / "vectors").iterdir())
    assert 2 * num_values <= size < 2 * num_values + 200 * len(loaded.tables)
    for name, table in loaded.tables.items():
        assert torch.equal(table, half.model.table(name))
    np.testing.assert_allclose(loaded.score(planted.test), half.score(planted.test), atol=1e-6)
    by_precision = {kind: quantized_scores(loaded, kind, planted.test) for kind in ("fp32", "fp16", "int8")}
    assert by_precision["fp16"][1] == 2 * num_values
    np.testing.assert_array_equal(by_precision["fp16"][0], by_precision["fp32"][0])
    np.testing.assert_allclose(by_precision["int8"][0], by_precision["fp32"][0], atol=2e-2)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_it_is_published_at_any_precision(half: RankingResult, path: Path, tmp_path: Path, precision: Precision) -> None:
    release = publish(path, tmp_path / "release", precision=precision)
    for table in release.tables:
        rows = torch.from_numpy(np.array(release.map_rows(table)))
        expected = encode(half.model.table(table.name).float(), precision)
        assert torch.equal(rows.view(torch.uint8).reshape(expected.shape), expected), table.name


@pytest.mark.parametrize("sequence_table", ["shared", "separate"])
def test_recent_pins_are_read_from_fp16_tables(planted: Planted, tmp_path: Path, sequence_table: str) -> None:
    test = with_recent(planted.test)
    config = arm_config(
        "pretrained", **HALF, sequence="attention", sequence_table=sequence_table, max_epochs=1, facets=("kge",),
        pretrained_facets=("kge",),
    )  # fmt: skip
    result = train(with_recent(planted.train), with_recent(planted.valid), config, snapshots=planted.snapshots)
    frozen = config.model_copy(update={"freeze_tables": True})
    still = train(with_recent(planted.train), with_recent(planted.valid), frozen, snapshots=planted.snapshots)
    for spec in result.model.specs:
        assert result.model.table(spec.name).dtype == torch.float16
        assert not torch.equal(result.model.table(spec.name), still.model.table(spec.name)), spec.name
    export_model(tmp_path / "model", result)
    np.testing.assert_allclose(load_model(tmp_path / "model").score(test), result.score(test), atol=1e-6)


def test_looked_up_rows_are_fp32(half: RankingResult, planted: Planted) -> None:
    rows = half.model.layout.rows(planted.test.take(np.arange(5)), half.id_maps)
    gathered, looked_up = half.model.gather(rows), half.model.look_up(rows)
    for feature, found in gathered.items():
        assert found.dtype == looked_up[feature].dtype == torch.float32
        assert torch.equal(found, looked_up[feature])


def test_what_fp16_cannot_hold_or_would_not_change_is_refused(planted: Planted) -> None:
    for fields, message in (
        ({"scratch_norm": 1e6, "pretrained_facets": ("kge",)}, "torch.float16 ends at 65504"),
        ({"pretrained_norm": 1e6}, "beyond torch.float16's 65504"),
    ):
        config = arm_config("pretrained", **HALF | fields)
        with pytest.raises(ValueError, match=message):
            train(planted.train, planted.valid, config, snapshots=planted.snapshots)
    with pytest.raises(ConfigurationError, match="table_dtype='fp16' would do nothing"):
        arm_config("no_ids", table_dtype="fp16")
    with pytest.raises(ConfigurationError, match="'fp32' or 'fp16'"):
        arm_config("pretrained", table_dtype="bf16")
