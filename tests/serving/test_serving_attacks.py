"""The short form of the benchmark `serving_attacks`: ordinary requests are answered while strangers do their worst."""

from __future__ import annotations

import time

import pytest

from benchmarks.harness.attacks import ATTACKS, Target, attack
from benchmarks.harness.forked import FORKS
from benchmarks.harness.memory import own_bytes
from multifacet.serving import LookupClient, LookupConfig, RankerClient, RankerConfig, ServerProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a")
    token = folder / "token"
    token.write_text("ours")
    fields = {"releases": (release.path,), "token_file": token, "listen": "127.0.0.1:0"}
    lookup_config = LookupConfig(**fields, framed_listen=f"unix:{folder / 'f'}", max_connections=300)
    ranker_config = RankerConfig(**fields, lookup=f"framed:unix:{folder / 'f'}", lookup_token_file=token, lookup_timeout_s=5)
    with ServerProcess("lookup", lookup_config, folder) as lookup, ServerProcess("ranker", ranker_config, folder) as ranker:
        yield folder, token, lookup, ranker


@pytest.mark.parametrize("name", ATTACKS)
def test_ordinary_requests_are_answered_meanwhile(served, release, request_of, name):
    folder, token, lookup, ranker = served
    request_ids, candidate_ids, dense = request_of(5)
    targets = [Target(lookup.address, str(folder / "f"), "/multifacet.serving.v1.Lookup/Lookup")]
    if "frame" not in name:
        targets.append(Target(ranker.address, "", "/multifacet.serving.v1.Ranker/Rank"))
    over = FORKS.Event()
    strangers = [FORKS.Process(target=attack, args=(name, target, over), daemon=True) for target in targets]
    for stranger in strangers:
        stranger.start()
    time.sleep(1.5)
    before = own_bytes(lookup.pid) + own_bytes(ranker.pid)
    try:
        with (
            LookupClient(lookup.address, token_file=token, timeout_s=5) as rows,
            RankerClient(ranker.address, token_file=token, timeout_s=5) as scores,
        ):
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                rows.lookup(release.version, {"pin": [11]})
                scores.rank(request_ids, candidate_ids, dense=dense)
    finally:
        over.set()
        for stranger in strangers:
            stranger.join(2)
            stranger.kill()
            stranger.join()
    assert own_bytes(lookup.pid) + own_bytes(ranker.pid) - before < 100e6
