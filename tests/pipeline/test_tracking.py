"""Runs are told to real MLflow and TensorBoard stores, and to nobody without the option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from multifacet.pipeline.runs.workspace import Stage
from multifacet.pipeline.terminal.console import ConsoleWatcher
from multifacet.pipeline.tracking import run as tracking
from multifacet.tables import Snapshot

PAIRS = "user,item\n" + "".join(f"u{user},i{item}\n" for user in range(40) for item in range(20) if (user + item) % 2 == 0)


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Any:
    yield
    tracking.end_tracking(failed=True)


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's store in a folder, which its client opens where nobody serves."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow's client is not installed: pip install 'multifacet[track]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())


def runs_of(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("multifacet")
    return {run.info.run_name.split(" ")[0]: run for run in client.search_runs([experiment.experiment_id])}


def events_of(folder: Path) -> Any:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard is not installed: pip install 'multifacet[track]'",
    )
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.slow
def test_a_training_tells_its_settings_curves_and_what_it_made(run: Any, mlflow_client: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(PAIRS)
    places = ("--track", f"mlflow:{(tmp_path / 'mlruns').as_uri()}", "--track", f"tensorboard:{tmp_path / 'logs'}")
    small = ("--set", "dim=8", "--set", "epochs=3")
    code, _, err = run(*places, "pretrain", "contrastive", "--pairs", tmp_path / "pairs.csv", tmp_path / "out", *small)
    assert code == 0, err
    snapshot = Snapshot.load(tmp_path / "out")
    told = runs_of(mlflow_client)["pretrain"]
    assert told.info.status == "FINISHED"
    assert told.data.params["dim"] == "8"
    assert told.data.tags["multifacet.fingerprint"] == snapshot.fingerprint
    assert told.data.tags["multifacet.path"] == str(tmp_path / "out")
    curve = mlflow_client.get_metric_history(told.info.run_id, "loss")
    assert [point.step for point in curve if point.step] == [1, 2, 3]
    measured = {key: value for key, value in snapshot.metrics.items() if isinstance(value, float)}
    for key, value in measured.items():
        assert value == pytest.approx(told.data.metrics[key.replace("@", "_at_").replace("/", ".")]), key
    (folder,) = (tmp_path / "logs").iterdir()
    events = events_of(folder)
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3]
    assert set(measured) <= {tag.removeprefix("result/") for tag in events.Tags()["scalars"]}
    assert b"| dim | 8 |" in events.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0]


def stage(folder: Path, name: str, *, reused: bool = False) -> Stage:
    return Stage(
        name=name,
        key="abc",
        path=folder,
        result={"auc": 0.7, "by_task": {"ctr": {"auc": 0.8}}, "words": "none", "good": True},
        seconds=2.0,
        peak_rss_bytes=100,
        reused=reused,
    )


def test_stages_are_runs_within_the_run(mlflow_client: Any, tmp_path: Path) -> None:
    tracking.start_tracking([f"mlflow:{(tmp_path / 'mlruns').as_uri()}", f"tensorboard:{tmp_path / 'logs'}"], "run today")
    watcher = ConsoleWatcher()
    for name in ("kge", "ranker"):
        watcher.started(name)
        watcher.progressed(name, "its process starts")
        for epoch in (1, 2):
            watcher.progressed(name, f"epoch {epoch}, loss {1.5 / epoch:.4f}")
    watcher.finished(stage(tmp_path, "kge"))
    watcher.finished(stage(tmp_path, "evaluate", reused=True))
    tracking.end_tracking(failed=True)
    told = runs_of(mlflow_client)
    assert sorted(told) == ["evaluate", "kge", "ranker", "run"]
    assert {name: told[name].info.status for name in told} == {
        "evaluate": "FINISHED",
        "kge": "FINISHED",
        "ranker": "FAILED",  # it had not ended
        "run": "FAILED",
    }
    assert {told[name].data.tags["mlflow.parentRunId"] for name in ("evaluate", "kge", "ranker")} == {told["run"].info.run_id}
    points = mlflow_client.get_metric_history(told["kge"].info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.5), (2, 0.75)]
    assert told["kge"].data.metrics["by_task.ctr.auc"] == 0.8
    assert "good" not in told["kge"].data.metrics
    assert (told["kge"].data.metrics["seconds"], "seconds" in told["evaluate"].data.metrics) == (2.0, False)
    events = events_of(tmp_path / "logs" / "run_today" / "kge")
    assert [point.value for point in events.Scalars("loss")] == pytest.approx([1.5, 0.75])


def test_a_command_that_fails_is_told_as_failed(run: Any, mlflow_client: Any, tmp_path: Path) -> None:
    code, _, _ = run("--track", f"mlflow:{(tmp_path / 'mlruns').as_uri()}", "snapshot", "show", tmp_path / "nothing")
    assert code == 1
    assert runs_of(mlflow_client)["snapshot"].info.status == "FAILED"


@pytest.mark.parametrize("place", ["mlflow", "wandb:here", "tensorboard:"])
def test_other_places_are_refused_with_the_forms(run: Any, place: str) -> None:
    code, _, err = run("--track", place, "data", "--help")
    code, _, err = run("--track", place, "snapshot", "show", "nothing")
    assert code == 1
    assert "expected mlflow:URI" in " ".join(err.split())


def test_a_missing_library_is_named(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, err = run("--track", "mlflow:http://127.0.0.1:1", "snapshot", "show", tmp_path)
    assert code == 1
    assert "pip install 'multifacet[track]'" in " ".join(err.split())


def test_without_the_option_nothing_is_imported() -> None:
    program = (
        "import sys, multifacet.pipeline.cli, multifacet.pipeline.terminal.training\n"
        "print([name for name in sys.modules if name.split('.')[0] in {'mlflow', 'tensorboard'}])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
