"""Live servers: a lookup that is not overlapped, versions that differ, ids without rows; and a deployment that is well."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifacet import serving
from multifacet.pipeline.diagnosis.diagnose import diagnose
from multifacet.pipeline.diagnosis.finding import Finding
from multifacet.pipeline.diagnosis.server_checks import Scrape, check_servers, scrape
from multifacet.serving import LookupConfig, LookupServer, RankerClient, RankerConfig, RankerServer

from .conftest import NUM_PINS, Trained

DELAY_S = 0.02


@pytest.fixture(scope="module")
def releases(healthy: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of one ranker."""
    folder = tmp_path_factory.mktemp("releases")
    for precision in ("int4", "int8"):
        serving.publish(healthy.path, folder / precision, precision=precision)  # type: ignore[arg-type]
    return folder / "int4", folder / "int8"


@contextmanager
def deployed(lookup_releases: tuple[Path, ...], ranker_release: Path, through: Any = None) -> Iterator[tuple[Any, Any]]:
    """A lookup server and a ranker, whose lookups may go through something."""
    metrics = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    lookup = LookupServer(LookupConfig(releases=lookup_releases, **metrics))
    address = lookup.start()
    try:
        with through(address) if through else _direct(address) as seen:
            ranker = RankerServer(RankerConfig(releases=(ranker_release,), lookup=seen, **metrics))
            ranker.start()
            try:
                yield lookup, ranker
            finally:
                ranker.stop(0)
    finally:
        lookup.stop(0)


@contextmanager
def _direct(address: str) -> Iterator[str]:
    yield address


@contextmanager
def delayed(address: str) -> Iterator[str]:
    """A wire that takes its time, in each direction."""
    host, port = address.rsplit(":", 1)
    listener = socket.create_server(("127.0.0.1", 0))
    open_: list[socket.socket] = [listener]

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                time.sleep(DELAY_S)
                target.sendall(data)
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            open_.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in open_:
            with closing(one):
                one.close()


def ask(ranker: Any, num_requests: int = 40, *, first_pin: int = 0) -> None:
    generator = np.random.default_rng(0)
    with RankerClient(ranker.address) as client:
        for number in range(num_requests):
            pins = generator.integers(0, NUM_PINS, 300) + first_pin
            client.rank({"user": number % 60}, {"pin": pins}, dense=generator.random((300, 1)).astype(np.float32))


def levels(findings: list[Finding]) -> dict[str, str]:
    worst: dict[str, str] = {}
    for found in findings:
        worst[found.check] = max(worst.get(found.check, "ok"), found.level, key=["ok", "warn", "stop"].index)
    return worst


def addresses(*servers: Any) -> list[str]:
    return [server.metrics_address for server in servers]


@pytest.mark.slow
def test_a_deployment_that_is_well(releases: tuple[Path, Path], run: Any) -> None:
    with deployed((releases[0],), releases[0]) as (lookup, ranker):
        ask(ranker)
        found = levels(diagnose(addresses(lookup, ranker)))
        # The tables' window is of long ago: that alone is told, and it is true.
        assert found.pop("freshness") == "warn"
        assert set(found) == {"ready", "failed requests", "unknown ids", "lookup overlap", "version skew"}
        assert set(found.values()) == {"ok"}, found
        code, output, _ = run("diagnose", *addresses(lookup, ranker), "--json")
    assert code == 0
    assert json.loads(output)["level"] == "warn"


@pytest.mark.slow
def test_a_lookup_that_is_not_overlapped(releases: tuple[Path, Path]) -> None:
    with deployed((releases[0],), releases[0], through=delayed) as (lookup, ranker):
        ask(ranker, 25)
        found = next(found for found in diagnose(addresses(lookup, ranker)) if found.check == "lookup overlap")
    assert found.level == "warn"
    assert "of its time" in found.told
    assert "not overlapped" in found.cause
    assert "lookup_server" in found.mend


@pytest.mark.slow
def test_rankers_of_two_versions(releases: tuple[Path, Path], run: Any) -> None:
    with deployed(releases, releases[0]) as (lookup, ranker), deployed((releases[1],), releases[1]) as (other, second):
        skewed = [found for found in diagnose(addresses(lookup, ranker, second)) if found.check == "version skew"]
        assert [found.level for found in skewed] == ["warn"]  # each is answered right, by its own version
        lacking = [found for found in diagnose(addresses(lookup, other, ranker, second)) if found.check == "version skew"]
        assert [found.level for found in lacking] == ["stop"]
        assert f"{other.metrics_address} lacks {ranker.current_version[:12]}" in lacking[0].told
        assert "rollout advance --to-end" in lacking[0].mend
        code, output, _ = run("diagnose", *addresses(other, ranker))
        assert code == 1
        assert "version skew" in output


@pytest.mark.slow
def test_ids_that_no_release_knows(releases: tuple[Path, Path]) -> None:
    with deployed((releases[0],), releases[0]) as (lookup, ranker):
        ask(ranker, 30, first_pin=10_000)
        unknown = {found.subject: found for found in diagnose(addresses(ranker)) if found.check == "unknown ids"}
        del lookup
    assert unknown[f"{ranker.metrics_address} pin_kge"].level == "warn"
    assert unknown[f"{ranker.metrics_address} user_kge"].level == "ok"


def test_what_is_no_server_is_refused(make_page: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="answers, but not as a lookup server or a ranker"):
        Scrape.read("127.0.0.1:1", "# TYPE up gauge\nup 1\n")
    with pytest.raises(OSError, match=r"127.0.0.1:9 does not answer .*metrics"):
        scrape("127.0.0.1:9")
    with pytest.raises(ValueError, match="several targets are addresses of servers"):
        diagnose([str(Path(__file__).parent), "127.0.0.1:9"])


@pytest.fixture
def make_page() -> Callable[[str], str]:
    """What a server's page is made from."""
    return lambda lines: "\n".join(lines.split(";"))


def test_a_server_that_is_not_ready(make_page: Callable[[str], str]) -> None:
    page = make_page("# TYPE multifacet_ranker_ready gauge;multifacet_ranker_ready 0.0;")
    found = check_servers([Scrape.read("a:1", page)])
    assert [(one.check, one.level) for one in found] == [("ready", "stop")]
    assert "half-finished" in found[0].cause


def test_requests_that_fail(make_page: Callable[[str], str]) -> None:
    page = make_page(
        "# TYPE multifacet_lookup_ready gauge;multifacet_lookup_ready 1.0;# TYPE multifacet_lookup_requests counter;"
        'multifacet_lookup_requests_total{code="OK"} 90.0;multifacet_lookup_requests_total{code="NOT_FOUND"} 10.0;'
    )
    found = next(one for one in check_servers([Scrape.read("a:1", page)]) if one.check == "failed requests")
    assert (found.level, round(found.value or 0.0, 6)) == ("warn", 0.1)
