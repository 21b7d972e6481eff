"""`multifacet bench-serving` against live servers, and what `multifacet serve --print-config` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multifacet.pipeline import cli
from multifacet.serving import LookupConfig, LookupServer, RankerConfig, RankerServer, Release


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["multifacet", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, capsys.readouterr().out

    return call


def test_a_lookup_server_is_loaded_and_its_latencies_are_written(run, release: Release, lookup_server: LookupServer, tmp_path):
    address = lookup_server.framed_address
    options = ["--rate", 200, "--seconds", 0.3, "--clients", 2, "--ids", 30, "--output", tmp_path, "--json"]
    code, out = run("bench-serving", release.path, "--lookup", address, *options)
    document = json.loads(out)
    assert code == 0
    assert (document["answered"], document["errors"]) == (60, {})
    assert document["latency_ms"]["max"] >= document["latency_ms"]["p50"] >= document["service_ms"]["p50"] > 0
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_a_ranker_is_loaded(run, release: Release, ranker_server: RankerServer):
    options = ["--rate", 50, "--seconds", 0.2, "--clients", 1, "--ids", 5]
    code, out = run("bench-serving", release.path, "--ranker", ranker_server.address, *options)
    assert code == 0
    assert "10 answered" in out


def test_no_target_is_wrong_usage_and_a_server_that_is_away_a_failure(run, release: Release):
    assert run("bench-serving", release.path)[0] == 2
    assert run("bench-serving", release.path, "--lookup", "127.0.0.1:1", "--clients", 1)[0] == 1


@pytest.mark.parametrize("role", ["lookup", "ranker"])
def test_a_server_prints_its_whole_configuration_and_ends(run, role):
    code, out = run("serve", role, "--release", "day-1", "--listen", "127.0.0.1:0", "--set", "workers=7", "--print-config")
    printed = json.loads(out)
    assert code == 0
    config = {"lookup": LookupConfig, "ranker": RankerConfig}[role].model_validate(printed)
    assert (config.workers, config.releases) == (7, (Path("day-1"),))
    assert printed.keys() == type(config).model_fields.keys()
