"""A newcomer's own log: string ids, country and hour, to a served score, by a short script and by commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from multifacet import ranking
from multifacet.graphdb import GraphSchema, GraphStore, NodeType
from multifacet.pipeline.cli import app
from multifacet.serving import LocalDeployment, RankerClient

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OPTIONS = ["--column", "user=user", "--column", "pin=item", "--column", "time=shown_at", "--dense", "price"]
OPTIONS += ["--feature", "country", "--feature", "hour", "--feature", "tags"]
FIELDS = ["--set", "dim=16", "--set", "max_epochs=4", "--set", "batch_size=128"]


def make_log(num_rows: int = 3000) -> pd.DataFrame:
    """Users like the items of their own taste; one country and the evening click more."""
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 60, num_rows), generator.integers(0, 40, num_rows)
    country, hour = generator.choice(["de", "fr", "jp", None], num_rows), generator.integers(0, 24, num_rows)
    price = generator.lognormal(0, 1, num_rows).round(2)
    logit = 3.0 * (users % 4 == items % 4) - 2.0 + (country == "jp") + 1.0 * (hour > 18) + 2.0 * (price < 1)
    seconds = np.sort(generator.integers(0, 80 * 86_400, num_rows))
    return pd.DataFrame(
        {
            "user": [f"user {user}" for user in users],
            "item": [f"sku-{item}" for item in items],
            "country": country,
            "hour": hour,
            "shown_at": pd.Timestamp("2025-01-01") + pd.to_timedelta(seconds, unit="s"),
            "price": price,
            "clicked": (generator.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


def test_the_script_serves_the_offline_scores(tmp_path: Path) -> None:
    script = ROOT / "examples" / "own_logs.py"
    assert len(script.read_text().splitlines()) <= 40
    make_log().to_csv(tmp_path / "log.csv", index=False)
    run = subprocess.run(  # noqa: PLW1510 - its code is asserted on
        [sys.executable, "-W", "ignore", str(script), str(tmp_path / "log.csv"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)},
    )
    assert run.returncode == 0, run.stderr
    assert "8 served scores equal the offline ones" in run.stdout
    assert float(run.stdout.split()[2].rstrip(";")) > 0.6


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = make_log()
    log["tags"] = [["red"] * (number % 2) + ["new"] * (number % 3 > 0) for number in range(len(log))]
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    log.to_parquet(path)
    return path


def test_the_same_by_commands_alone(tmp_path: Path) -> None:
    run, log = CliRunner().invoke, tmp_path / "log.csv"
    make_log().to_csv(log, index=False)
    options = [option for option in OPTIONS if option != "tags"][:-1]
    model, release, scores = (str(tmp_path / name) for name in ("model", "release", "scores.parquet"))
    for arguments in (
        ["train", "--examples", str(log), *options, "--validate-from", "2025-03-01", "--arm", "scratch", *FIELDS, model],
        ["evaluate", "--examples", str(log), model, "--scores", scores, "--json"],
        ["publish", model, release, "--precision", "fp32"],
    ):
        answer = run(app, arguments)
        assert answer.exit_code == 0, answer.output
    offline = pq.read_table(scores)["ctr"].to_numpy()
    rows = make_log().fillna({"country": ""})
    with LocalDeployment(Path(release)) as deployment, RankerClient(deployment.ranker_address) as client:
        for place in (0, 17, 2999):
            row = rows.iloc[place]
            candidates = {"pin": [row["item"]], "country": [row["country"]], "hour": [int(row["hour"])]}
            answer = client.rank({"user": row["user"]}, candidates, dense=np.float32([[row["price"]]]))
            assert answer.ctr[0] == pytest.approx(offline[place], abs=1e-5)


def test_lists_are_trained_published_and_served_with_their_offline_scores(tmp_path: Path, parquet: Path) -> None:
    run, model, release = CliRunner().invoke, str(tmp_path / "model"), str(tmp_path / "release")
    scores = str(tmp_path / "scores.parquet")
    train = ["train", "--examples", str(parquet), *OPTIONS, "--validate-from", "2025-03-01", "--arm", "scratch", *FIELDS, model]
    answer = run(app, [*train, "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["config"]["features"] == ["user", "pin", "country", "hour", "tags"]
    assert run(app, ["evaluate", "--examples", str(parquet), model, "--scores", scores]).exit_code == 0
    answer = run(app, ["publish", model, release, "--precision", "fp32"])
    assert answer.exit_code == 0, answer.output
    offline = pq.read_table(scores)["ctr"].to_numpy()
    rows = pd.read_parquet(parquet).fillna({"country": ""})
    with LocalDeployment(Path(release)) as deployment, RankerClient(deployment.ranker_address) as client:
        for place in (0, 1, 2, 3, 17, 2999):
            row = rows.iloc[place]
            candidates = {"pin": [row["item"]], "country": [row["country"]], "hour": [int(row["hour"])], "tags": [row["tags"]]}
            answer = client.rank({"user": row["user"]}, candidates, dense=np.float32([[row["price"]]]))
            assert answer.ctr[0] == pytest.approx(offline[place], abs=1e-6)


def test_labelled_rows_come_out_of_a_store_by_a_query(tmp_path: Path, parquet: Path) -> None:
    schema = GraphSchema(nodes=(NodeType(name="user"),), relations=())
    with GraphStore.create(tmp_path / "g.duckdb", schema):
        pass
    run = CliRunner().invoke
    query = f"SELECT * FROM read_parquet('{parquet}')"
    arguments = ["train", str(tmp_path / "g.duckdb"), str(tmp_path / "m"), "--query", query, *OPTIONS, *FIELDS]
    answer = run(app, [*arguments, "--validate-from", "2025-03-01", "--arm", "scratch"])
    assert answer.exit_code == 0, answer.output
    answer = run(app, ["train", str(tmp_path / "g.duckdb"), str(tmp_path / "n"), "--arm", "scratch"])
    assert answer.exit_code == 1
    assert "has no table `periods`" in str(answer.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--examples", "a.csv", "--arm", "scratch", "m"],
        ["train", "--examples", "a.csv", "--validate-from", "2025-03-01", "m"],
        ["train", "--examples", "a.csv", "--query", "SELECT 1", "m"],
        ["train", "s", "m", "--column", "user=u"],
        ["train", "--examples", "a.csv", "--validation-examples", "b.csv", "--training", "1", "2", "m"],
        ["train", "--examples", "a.csv", "--validation-examples", "b.csv", "--column", "colour=c", "m"],
        ["train", "m"],
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_group_auc_is_reported(parquet: Path) -> None:
    columns = ranking.LabelledColumns(user="user", pin="item", dense=("price",))
    rows = ranking.read_examples(parquet, columns)
    scores = np.random.default_rng(0).random((len(rows), 2)).astype(np.float32)
    assert 0.4 < ranking.evaluate(scores, rows, num_resamples=10)["ctr"]["group_roc_auc"] < 0.6
