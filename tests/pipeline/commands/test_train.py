"""`multifacet train`: checkpoints, resuming, logs and recent pins."""

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifacet.graphdb import GraphStore
from multifacet.pipeline.terminal.training import TrainingDisplay
from multifacet.ranking import FeatureConfig, build_examples, load_model, quantized_scores
from multifacet.serving import LocalDeployment, RankerClient, Release
from multifacet.tables import IdMap
from multifacet.training import Checkpoint, StepProgress
from tests.ranking.conftest import random_world

SPANS = ("--training", 3, 6, "--validation", 7, 8, "--labels-known-before", 9)
SMALL = ("--set", "dim=4", "--set", "hidden=[8]", "--set", "batch_size=64", "--set", "max_epochs=2", "--arm", "scratch")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "store.duckdb"
    random_world(0).write(path).close()
    return path


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.slow
def test_a_model_is_published_over_a_release_verified_and_folded(run: Any, store: Path, tmp_path: Path) -> None:
    assert run("train", store, tmp_path / "model", *SPANS, *SMALL)[0] == 0
    assert run("publish", tmp_path / "model", tmp_path / "base")[0] == 0
    code, out, err = run("publish", tmp_path / "model", tmp_path / "delta", "--base", tmp_path / "base", "--json")
    assert code == 0, err
    delta = json.loads(out)
    assert delta["base"] == Release.open(tmp_path / "base").version
    assert delta["bytes"] == 0  # nothing changed
    code, out, err = run("fold", tmp_path / "delta", tmp_path / "folded", "--json")
    assert code == 0, err
    assert json.loads(out)["base"] is None
    assert json.loads(out)["version"] == delta["base"]  # nothing changed: it is the base, byte by byte
    code, out, err = run("verify", tmp_path / "delta", "--json")
    assert code == 0, err
    assert json.loads(out)["base"] == delta["base"]
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "folded"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert run("verify", tmp_path / "delta", "--half", "ranker")[0] == 0  # a ranker's host has no base
    code, _, err = run("verify", tmp_path / "delta")
    assert code == 1
    assert "not beside it" in err
    code, _, err = run("publish", tmp_path / "model", tmp_path / "more", "--tolerance", "0.1")
    assert code == 2
    code, _, err = run(
        "publish", tmp_path / "model", tmp_path / "more", "--base", tmp_path / "elsewhere" / "base", "--shards", "2"
    )
    assert code == 2


def test_hashed_ids_are_reported_and_looked_up_by_the_written_model(run: Any, store: Path, tmp_path: Path) -> None:
    hashing = ("--hash-rows", "pin=13", "--hash-rows", "user=7x2")
    code, out, err = run("train", store, tmp_path / "model", *SPANS, *SMALL, *hashing, "--json")
    assert code == 0, err
    document = json.loads(out)
    with GraphStore.open(store, read_only=True) as graph:
        trained = build_examples(graph, range(3, 7))
        examples = build_examples(graph, [9, 10])
    pins, users = IdMap.hashed(13, id_type="int64"), IdMap.hashed(7, id_type="int64", num_hashes=2)
    assert document["config"]["hash_rows"]["user"] == {"rows": 7, "num_hashes": 2}
    assert document["collisions"] == {
        "pin": asdict(pins.collision_report(trained.pin_id)),
        "user": asdict(users.collision_report(trained.user_id)),
    }
    assert document["collisions"]["pin"]["collision_rate"] > 0.5

    model = load_model(tmp_path / "model")
    assert model.artifact.manifest["collisions"] == document["collisions"]
    assert {(name, len(table)) for name, table in model.tables.items() if "kge" in name} >= {("pin_kge", 13), ("user_kge", 7)}
    assert model.id_maps[model.features.index("advertiser")].kind == "exact"
    # Ids that nobody has seen, with the rows of ids that are there.
    strangers = np.arange(10**6, 10**6 + 5000)
    others = {}
    for name, id_map in (("pin_id", pins), ("user_id", users)):
        rows = id_map.rows(strangers).reshape(len(strangers), -1)
        own = id_map.rows(getattr(examples, name)).reshape(len(examples), -1)
        others[name] = strangers[[int((rows == row).all(1).argmax()) for row in own]]
    expected = model.score(examples)
    np.testing.assert_array_equal(model.score(replace(examples, **others)), expected)
    assert (model.score(replace(examples, pin_id=others["pin_id"][::-1].copy())) != expected).any()

    code, out, err = run("evaluate", store, tmp_path / "model", "--periods", 9, 10, "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["metrics"]["ctr"]["roc_auc"] <= 1


def test_the_collision_report_is_printed(run: Any, store: Path, tmp_path: Path) -> None:
    code, out, err = run("train", store, tmp_path / "model", *SPANS, *SMALL, "--hash-rows", "pin=13", "--set", "max_epochs=1")
    assert code == 0, err
    assert "ids that share rows" in out
    assert "collision rate" in out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--hash-rows", "store=100"), 1, "hash_rows names ['store']; expected some of the features"),
        (("--hash-rows", "pin"), 2, "pin=20000 or user=5000x2"),
        (("--hash-rows", "pin=12x"), 2, "pin=20000 or user=5000x2"),
        (("--hash-rows", "pin=0"), 1, "greater than or equal to 1"),
        (("--hash-rows", "pin=5", "--hash-rows", "pin=6"), 2, "'pin' twice"),
        (("--hash-rows", "pin=5", "--set", 'hash_rows={"pin": {"rows": 5}}'), 2, "give one of them"),
        (("--hash-rows", "pin=5", "--arm", "no_ids"), 1, "would do nothing"),
    ],
)
def test_hashing_that_cannot_be_is_refused(
    run: Any, store: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run("train", store, tmp_path / "model", *SPANS, *SMALL, *options)
    assert found == code, err
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "model").exists()
