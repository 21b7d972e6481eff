"""Steps as plain calls, and the same calls under Dagster where it is installed."""

from __future__ import annotations

import datetime as dt
import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.pipeline.daily import loads, steps
from multifacet.pipeline.daily.config import LoadSection
from multifacet.pipeline.daily.day import Day, StepError
from multifacet.pipeline.daily.history import History
from multifacet.pipeline.daily.reading import read_pipeline
from multifacet.pipeline.daily.run import backfill
from multifacet.pipeline.runs.workspace import WorkspaceError
from multifacet.pipeline.terminal.console import ConsoleWatcher
from multifacet.serving import Release
from multifacet.tables import Snapshot

DAY = dt.date(2025, 1, 21)
EXAMPLES = Path(__file__).parents[3] / "examples"


def statuses(path: Path) -> list[tuple[str, str]]:
    return [(run.status, run.reason) for run in History(read_pipeline(path).folder).runs()]


@pytest.mark.slow
def test_steps_are_plain_calls(write_shop: Callable[..., Path], silent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shop()
    list(backfill(read_pipeline(path), dt.date(2025, 1, 1), DAY - dt.timedelta(days=1), silent, until="load"))
    steps.load(path, str(DAY))
    assert Snapshot.load(steps.pretrain(path, DAY, "kge")).facet == "kge"
    evaluated = steps.evaluate(path, DAY)  # with what it needs: the other facet, the examples and the ranker
    assert evaluated["metrics"]["ctr"]["roc_auc"] > 0.6
    release = Release.open(steps.publish(path, DAY))
    assert release.precision == "int4"
    assert steps.roll_out(path, DAY) is None
    assert statuses(path)[-5:] == [
        *(("partial", f"step {name}") for name in ("load", "kge", "evaluation")),
        *(("released", f"step {name}") for name in ("release", "rollout")),
    ]
    last = History(read_pipeline(path).folder).runs()[-1]
    assert all(step.reused for step in last.steps)
    strict = write_shop(**{"calibration_stop = 2.0": "coverage_stop = 1.1"})
    with pytest.raises(StepError, match=r"gates stop the release of 2025-01-21: .*have a row of their own"):
        steps.publish(strict, DAY)
    assert statuses(strict)[-1][0] == "failed"

    # The same under Dagster: its assets find all of it done.
    if importlib.util.find_spec("dagster") is None:
        pytest.skip("dagster is not installed: pip install 'multifacet[dagster]'; the plain calls were tested")
    materialize(write_shop(), monkeypatch)


def materialize(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster  # noqa: PLC0415 - optional

    monkeypatch.setenv("MULTIFACET_PIPELINE", str(path))
    monkeypatch.setenv("MULTIFACET_FIRST_DAY", "2025-01-01")
    spec = importlib.util.spec_from_file_location("daily_dagster", EXAMPLES / "daily_dagster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = dagster.materialize(module.ASSETS, partition_key=str(DAY))
    assert result.success
    assert Release.open(result.output_for_node("release")).precision == "int4"


def test_a_step_waits_for_another(write_shop: Callable[..., Path], silent: Any) -> None:
    path = write_shop()
    with held(path), pytest.raises(WorkspaceError, match="another run is using"):
        steps.load(path, "2025-01-01", wait_s=0.0)
    done = threading.Event()

    def wait() -> None:
        steps.load(path, "2025-01-01", wait_s=60.0)
        done.set()

    with held(path):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.is_set()
    thread.join(60.0)
    assert done.is_set()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The store's lock, taken by another run."""
    with Day(read_pipeline(path), DAY, ConsoleWatcher()).locked():
        yield


def test_the_airflow_example_is_python() -> None:
    compile((EXAMPLES / "daily_airflow.py").read_text(), "daily_airflow.py", "exec")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_condition_leaves_text_as_it_is(tmp_path: Path, suffix: str) -> None:
    """DuckDB's sniffer would make one user of "1e5" and "100000", and lose the zeros of "0007"."""
    between = "," if suffix == "csv" else "\t"
    rows = [
        ("user", "pin", "time", "clicked"),
        ("1e5", "0007", "2026-01-01T05:00:00+05:00", "1"),
        ("100000", "7", "2026-01-01", "1"),
        ("nobody", "7", "2026-01-01", "0"),
    ]
    (tmp_path / f"events.{suffix}").write_text("\n".join(between.join(row) for row in rows) + "\n")
    nodes = (NodeType(name="user", id_type="string"), NodeType(name="pin", id_type="string"))
    clicks = Relation(src="user", name="clicks", dst="pin", timed=True)
    with GraphStore.create(tmp_path / "shop.duckdb", GraphSchema(nodes=nodes, relations=(clicks,))) as store:
        section = LoadSection(
            relation="clicks", files=str(tmp_path / f"events.{suffix}"), src="user", dst="pin", where="clicked = 1"
        )
        assert loads._load_one(store, section, [section.files], DAY)["loaded"] == 2
        assert set(store.view().node_ids("user").to_pylist()) == {"1e5", "100000"}
        assert set(store.view().node_ids("pin").to_pylist()) == {"0007", "7"}
        times = store.sql("SELECT time FROM edges_clicks").column("time").to_pylist()
        assert set(times) == {dt.datetime(2026, 1, 1)}
        with pytest.raises(ValueError, match="all of one kind"):
            loads._load_one(store, section, [str(tmp_path / "events.jsonl")], DAY)
