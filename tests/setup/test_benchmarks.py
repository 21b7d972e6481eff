"""Benchmarks are found, run and written down, and a ratio always means how many times better."""

import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from benchmarks.harness.machine import describe_machine, describe_versions
from benchmarks.harness.registry import find_benchmarks
from benchmarks.harness.results import format_value, save

pytestmark = pytest.mark.slow

LATENCY = Metric(name="p50_latency", unit="us", better=LOWER)
SPEED = Metric(name="edges_per_s", unit="1/s", better=HIGHER)
FIELDS = ["benchmark", "case", "metric", "value", "unit", "peer", "peer_value", "ratio", "machine", "versions", "config"]
positive = st.floats(min_value=1e-6, max_value=1e12)


@given(positive, positive)
def test_a_ratio_above_one_is_better_in_either_direction(value: float, peer_value: float):
    peer = Peer(name="other", value=peer_value)
    latency = Row(case="a", metric=LATENCY, value=value, peer=peer).ratio
    speed = Row(case="a", metric=SPEED, value=value, peer=peer).ratio
    assert latency is not None
    assert speed is not None
    assert (latency > 1) == (value < peer_value)
    assert (speed > 1) == (value > peer_value)
    assert latency * speed == pytest.approx(1)


def test_without_a_peer_there_is_no_ratio():
    document = Row(case="a", metric=LATENCY, value=3.0).document("b", {}, {})
    assert (document["peer"], document["peer_value"], document["ratio"]) == (None, None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match="'8M rows', p50_latency"):
        Row(case="8M rows", metric=LATENCY, value=value)


@pytest.mark.parametrize(("value", "peer_value"), [(0.0, 1.0), (1.0, 0.0), (1.0, float("nan"))])
def test_a_ratio_that_is_not_defined_is_refused(value: float, peer_value: float):
    with pytest.raises(ValueError, match="needs positive values"):
        Row(case="a", metric=LATENCY, value=value, peer=Peer(name="other", value=peer_value))


def test_machine_and_versions_tell_neither_the_host_nor_any_path():
    text = json.dumps([describe_machine(), describe_versions()])
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert describe_versions()["torch"].startswith("2.")
    assert describe_machine()["cores"] >= 1


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks, importable as the package `sorting`."""
    folder = tmp_path / "sorting"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "sort_list.py").write_text(
        '"""Sorting a list.\n\nMore."""\n'
        "from benchmarks.harness import LOWER, Metric, Row\n"
        "def run(quick):\n"
        "    yield Row(case='small', metric=Metric(name='time', unit='s', better=LOWER), value=1.0 if quick else 2.0)\n"
    )
    (folder / "broken.py").write_text('"""Cannot be imported."""\nraise ImportError("no such kernel")\n')
    (folder / "no_run.py").write_text('"""Has no run."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "sorting", raising=False)
    return folder


def test_benchmarks_are_listed_without_being_imported(suite: Path):
    found = find_benchmarks(suite)
    assert {name: benchmark.help for name, benchmark in found.items()} == {
        "broken": "Cannot be imported.",
        "no_run": "Has no run.",
        "sort_list": "Sorting a list.",
    }
    with pytest.raises(ImportError, match="no such kernel"):
        found["broken"].load()
    with pytest.raises(TypeError, match=r"sorting.no_run should define run\(quick: bool\)"):
        found["no_run"].load()
    (row,) = found["sort_list"].load()(True)
    assert row.value == 1.0


def test_a_benchmark_without_a_docstring_is_refused_by_its_path(suite: Path):
    (suite / "silent.py").write_text("def run(quick):\n    yield\n")
    with pytest.raises(ValueError, match=r"silent\.py"):
        find_benchmarks(suite)


def test_benchmarks_of_packages_are_found_by_their_own_names(suite: Path):
    (suite / "deep").mkdir()
    (suite / "deep" / "__init__.py").write_text("")
    (suite / "deep" / "sort_tuple.py").write_text('"""Sorting a tuple."""\ndef run(quick):\n    yield\n')
    assert find_benchmarks(suite)["sort_tuple"].package == "sorting.deep"
    assert callable(find_benchmarks(suite)["sort_tuple"].load())
    (suite / "deep" / "sort_list.py").write_text('"""Sorting a list once more."""\n')
    with pytest.raises(ValueError, match="there is a benchmark 'sort_list' already, in sorting"):
        find_benchmarks(suite)


def test_every_benchmark_of_the_project_is_complete(repository: Path):
    found = find_benchmarks()
    assert "demo_stages" in found
    for benchmark in found.values():
        assert benchmark.load()


def run_benchmarks(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_lists_the_benchmarks_and_refuses_one_that_does_not_exist(repository: Path):
    listing = run_benchmarks(repository)
    assert listing.returncode == 0
    assert "demo_stages" in listing.stdout
    refused = run_benchmarks(repository, "no_such_benchmark")
    assert refused.returncode == 2
    assert "demo_stages" in refused.stderr


def test_rows_go_to_stdout_and_to_a_file_in_the_format_of_all_benchmarks(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    main = importlib.import_module("benchmarks.__main__")
    monkeypatch.setattr(main, "find_benchmarks", lambda: find_benchmarks(suite))
    main.main("sort_list", quick=True, as_json=True, output=tmp_path / "rows.jsonl", keep=False)
    written = capsys.readouterr().out
    assert (tmp_path / "rows.jsonl").read_text() == written
    (line,) = written.splitlines()
    row = json.loads(line)
    assert list(row) == FIELDS
    assert (row["benchmark"], row["value"], row["config"]) == ("sort_list", 1.0, {"quick": True})


def test_a_saved_report_has_the_command_the_machine_the_versions_and_every_row(tmp_path: Path):
    machine = {"cpu": "A CPU", "cores": 2, "memory_bytes": 25276514304, "gpus": []}
    config = {"quick": True, "dim": 64}
    rows = [
        Row(case="complex", metric=SPEED, value=181_234.5, peer=Peer(name="loop", value=60_000.0), config=config),
        Row(case="complex", metric=Metric(name="rss", unit="bytes", better=LOWER), value=3 * 2.0**20, config=config),
    ]
    documents = [row.document("kge_training", machine, {"torch": "2.13.0"}) for row in rows]
    command = "python -m benchmarks kge_training --quick --save"
    report = save(documents, help_text="Training.", command=command, seconds=12.3, folder=tmp_path)
    text = report.read_text()
    for part in (
        command,
        "| complex | edges_per_s | 181,234 1/s | loop | 60,000 1/s | 3.02x |",
        "| complex | rss | 3.0 MiB |  |  |  |",
        "| memory_bytes | 23.5 GiB |",
        "| torch | 2.13.0 |",
        "| dim | 64 |",
    ):
        assert part in text
    lines = report.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == documents


def test_nothing_is_saved_of_a_benchmark_without_rows(tmp_path: Path):
    with pytest.raises(ValueError, match="no row"):
        save([], help_text="", command="", seconds=0.0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.000123456, "s", "0.0001235 s"),
        (12_345.6, "us", "12,346 us"),
        (1.5, "", "1.5"),
        (None, "s", ""),
        (512, "bytes", "512 B"),
    ],
)
def test_values_are_written_for_people(value: float | None, unit: str, text: str):
    assert format_value(value, unit) == text
