"""A killed run that is resumed ends with the bits of one that was not."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from multifacet.ranking import RankingResult, arm_config, train
from multifacet.tables import CheckpointError, Lifecycle, StepProgress

from .conftest import Planted
from .test_training import SMALL

CONFIG = arm_config("pretrained", **SMALL, max_epochs=2, thaw_after_steps=3)


def fit(planted: Planted, config: Any = CONFIG, **options: Any) -> RankingResult:
    return train(planted.train, planted.valid, config, snapshots=planted.snapshots, **options)


def stopping_after(num_steps: int) -> dict[str, Any]:
    stop = threading.Event()

    def count(progress: StepProgress) -> None:
        if progress.epoch * progress.num_steps + progress.step >= num_steps:
            stop.set()

    return {"stop": stop, "on_step": count}


@pytest.fixture(scope="module")
def whole(planted: Planted) -> RankingResult:
    return fit(planted)


@pytest.mark.parametrize("num_steps", [2, 8, 21])
def test_resumed_runs_are_bit_equal(planted: Planted, whole: RankingResult, num_steps: int, tmp_path: Path) -> None:
    """In the middle of a part, at a validation, and in the second epoch."""
    checkpoint, log = tmp_path / "checkpoint", tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        fit(planted, lifecycle=Lifecycle(checkpoint=checkpoint, **stopping_after(num_steps)), log_folder=log)
    with (log / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": "written after the checkpoint, and lost with it"}\n')
    resumed = fit(planted, lifecycle=Lifecycle(checkpoint=checkpoint, resume=True), log_folder=log)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    timeless = [
        [{name: value for name, value in row.items() if name not in ("seconds", "examples_per_s")} for row in result.history]
        for result in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]
    lines = (log / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history


def test_a_checkpoint_of_another_run_is_refused(planted: Planted, tmp_path: Path) -> None:
    life = {"checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(KeyboardInterrupt):
        fit(planted, lifecycle=Lifecycle(**life, **stopping_after(1)))
    with pytest.raises(CheckpointError, match="resume=True"):
        fit(planted, lifecycle=Lifecycle(**life))
    with pytest.raises(CheckpointError, match=r"config\.upper_lr"):
        fit(planted, CONFIG.model_copy(update={"upper_lr": 0.1}), lifecycle=Lifecycle(**life, resume=True))
    other = Planted(train=planted.valid, valid=planted.valid, test=planted.test, snapshots=planted.snapshots)
    with pytest.raises(CheckpointError, match="window"):
        fit(other, lifecycle=Lifecycle(**life, resume=True))
