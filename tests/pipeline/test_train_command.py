"""`multifacet train`: checkpoints, resuming, logs and recent pins."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from graphdb import GraphStore
from pipeline.training import TrainingDisplay
from ranking import FeatureConfig, build_examples, quantized_scores
from serving import LocalDeployment, RankerClient
from tables import Checkpoint, StepProgress
from tests.ranking.conftest import random_world

SPANS = ("--training", 3, 6, "--validation", 7, 8, "--labels-known-before", 9)
SMALL = ("--set", "dim=4", "--set", "hidden=[8]", "--set", "batch_size=64", "--set", "max_epochs=2", "--arm", "scratch")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "store.duckdb"
    random_world(0).write(path).close()
    return path


def test_training_goes_on_after_ctrl_c_with_the_same_bits(
    run: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_at_a_step(self: TrainingDisplay, progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (1, 3):
            signal.raise_signal(signal.SIGINT)

    command = ("train", store)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingDisplay, "on_step", interrupt_at_a_step)
        code, _, err = run(*command, tmp_path / "first", *SPANS, *SMALL, "--logs", tmp_path / "logs")
    assert code == 130, err
    assert "writing a checkpoint" in err
    assert not (tmp_path / "first").exists()
    position = Checkpoint.load(tmp_path / "first.checkpoint").fields["position"]
    assert (position["epoch"], position["step"] >= 3) == (1, True)
    code, _, err = run(*command, tmp_path / "first", *SPANS, *SMALL)
    assert code == 1
    assert "--resume" in err
    code, out, err = run(*command, tmp_path / "first", *SPANS, *SMALL, "--resume", "--logs", tmp_path / "logs", "--json")
    assert code == 0, err
    assert not (tmp_path / "first.checkpoint").exists()
    code, whole, _ = run(*command, tmp_path / "whole", *SPANS, *SMALL, "--json")
    assert code == 0
    assert json.loads(out)["validation"] == json.loads(whole)["validation"]
    tables = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert tables
    for table in tables:
        assert (tmp_path / "first" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == sorted({row["epoch"] for row in rows})


def test_a_model_with_a_sequence_is_trained_and_scored(run: Any, store: Path, tmp_path: Path) -> None:
    sequence = ("--recent-pins", 3)
    code, _, err = run("train", store, tmp_path / "model", *SPANS, *SMALL, *sequence, "--set", "sequence=attention")
    assert code == 0, err
    code, out, err = run("evaluate", store, tmp_path / "model", "--periods", 9, 10, *sequence, "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["metrics"]["ctr"]["roc_auc"] <= 1
    code, _, err = run("evaluate", store, tmp_path / "model", "--periods", 9, 10)
    assert code == 1
    assert "recent pins" in err


def test_recent_pins_that_no_model_reads_are_wrong_usage(run: Any, store: Path, tmp_path: Path) -> None:
    code, _, err = run("train", store, tmp_path / "model", *SPANS, *SMALL, "--recent-pins", 3)
    assert code == 2
    assert "sequence=attention" in err
    assert not (tmp_path / "model").exists()


def test_a_model_with_a_sequence_is_published_and_served_with_its_offline_scores(run: Any, store: Path, tmp_path: Path) -> None:
    fields = ("--recent-pins", 3, "--set", "sequence=transformer", "--set", "sequence_table=separate", "--set", "dropout=0.0")
    code, _, err = run("train", store, tmp_path / "model", *SPANS, *SMALL, *fields)
    assert code == 0, err
    code, _, err = run("publish", tmp_path / "model", tmp_path / "release", "--json")
    assert code == 0, err
    code, out, err = run("verify", tmp_path / "release", "--json")
    assert code == 0, err
    sequence = json.loads(out)["sequence"]
    assert (sequence["feature"], sequence["length"]) == ("recent_pins", 3)
    with GraphStore.open(store, read_only=True) as graph:
        examples = build_examples(graph, [9, 10], features=FeatureConfig(recent_pins=3))
    offline, _ = quantized_scores(tmp_path / "model", "int4", examples)
    recent = examples.recent
    assert recent is not None
    counts = recent.num_recent.tolist()
    with LocalDeployment(tmp_path / "release") as served, RankerClient(served.ranker_address, timeout_s=10) as client:
        for number in (counts.index(min(counts)), counts.index(max(counts)), len(counts) - 1):
            answer = client.rank(
                {"user": int(examples.user_id[number])},
                {"pin": examples.pin_id[[number]], "advertiser": examples.advertiser_id[[number]]},
                dense=examples.dense[[number]],
                sequences={"recent_pins": recent.pin_ids[number, : counts[number]]},
            )
            assert [*answer.ctr, *answer.cvr] == pytest.approx(offline[number].tolist(), abs=1e-6)
