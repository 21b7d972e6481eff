"""`multifacet admin` looks at one live server and tells it what to hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.harness.witness import write_witness
from multifacet.serving import LookupConfig, LookupServer, connect_lookup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LookupServer]:
    (tmp_path / "token").write_text("ours")
    releases = [write_witness(tmp_path / f"release-{number}", number) for number in (1, 2)]
    config = LookupConfig(
        releases=(releases[0].path,),
        listen="127.0.0.1:0",
        admin_releases=tmp_path,
        admin_token_file=tmp_path / "token",
        state_file=tmp_path / "state",
    )
    with LookupServer(config) as server:
        yield server


def test_a_version_is_loaded_chosen_and_another_retired(run: Any, server: LookupServer, tmp_path: Path) -> None:
    token = ("--token-file", tmp_path / "token")
    code, out, err = run("admin", "status", server.address, *token, "--json")
    assert code == 0, err
    (first,) = json.loads(out)["versions"]
    assert (first["current"], json.loads(out)["role"], json.loads(out)["ready"]) == (True, "lookup", True)
    code, out, err = run("admin", "load", server.address, tmp_path / "release-2", *token, "--json")
    assert code == 0, err
    second = next(held["version"] for held in json.loads(out)["versions"] if held["version"] != first["version"])
    assert json.loads(out)["current"] == first["version"]
    code, _, err = run("admin", "retire", server.address, first["version"][:8], *token)
    assert code == 1
    assert "current" in err
    code, out, err = run("admin", "choose", server.address, second[:8], *token, "--json")
    assert code == 0, err
    assert json.loads(out)["current"] == second
    code, out, err = run("admin", "retire", server.address, first["version"], *token)
    assert code == 0, err
    assert second[:12] in out
    assert first["version"][:12] not in out
    with connect_lookup(server.address) as client:
        assert client.lookup(second, {"pin": [1]}).version == second


def test_what_is_not_held_or_not_allowed_is_refused(run: Any, server: LookupServer, tmp_path: Path) -> None:
    token = ("--token-file", tmp_path / "token")
    code, _, err = run("admin", "choose", server.address, "0" * 64, *token)
    assert code == 1
    assert "is the beginning of 0 versions" in err
    (tmp_path / "other").write_text("theirs")
    code, _, err = run("admin", "status", server.address, "--token-file", tmp_path / "other")
    assert code == 1
    assert "token" in err
    code, _, err = run("admin", "load", server.address, tmp_path / "nowhere", *token)
    assert code == 1
    assert "nowhere" in err
