"""The lookup server answers stored bytes in the order of the ids, of the version that was asked for."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.serving import (
    DeadlineExceededError,
    InvalidRequestError,
    LookupClient,
    LookupConfig,
    LookupServer,
    OverloadedError,
    ServingError,
    UnavailableError,
    VersionNotLoadedError,
    connect_lookup,
)
from multifacet.tables import encode


@pytest.fixture(scope="module", params=["grpc", "framed-unix", "framed-tcp", "grpc-async", "framed-async"])
def transport(request, make_transport):
    return make_transport(request.param)


def test_rows_are_the_stored_bytes_in_the_order_of_the_ids(model, release, lookup_client):
    pins = np.array([11, -500, 999_999, 11])  # known, first, unknown, again
    answer = lookup_client.lookup(release.version, {"pin": pins, "user": [1003]})
    assert answer.version == release.version
    assert list(answer.tables) == ["user_kge", "user_contrastive", "pin_kge", "pin_contrastive"]
    encoded = encode(model.weights["pin_kge"], "int4").numpy()
    rows = answer.tables["pin_kge"]
    np.testing.assert_array_equal(rows.rows, encoded[[511 // 7, 0, 300, 511 // 7]])
    assert (rows.dim, rows.precision, rows.num_unknown_ids) == (16, "int4", 1)
    assert answer.tables["pin_contrastive"].num_unknown_ids == 0  # hashed: every id has a row
    assert answer.tables["user_kge"].rows.shape == (1, 12)


INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=30, deadline=None)
@given(
    pins=st.lists(INT64 | st.integers(-600, 1700), max_size=30), brands=st.lists(st.text() | st.just("brand-3é"), max_size=10)
)
def test_any_ids_get_their_row_or_the_out_of_vocabulary_row(model, release, lookup_client, pins, brands):
    answer = lookup_client.lookup(release.version, {"pin": np.array(pins, np.int64), "advertiser": brands})
    for name, values, id_map in (("pin_kge", pins, "pin"), ("advertiser_kge", brands, "advertiser")):
        known = {value: row for row, value in enumerate(_ids_of(id_map))}
        rows = [known.get(value, len(known)) for value in values]
        encoded = encode(model.weights[name], "int4").numpy()
        np.testing.assert_array_equal(answer.tables[name].rows, encoded[rows])
        assert answer.tables[name].num_unknown_ids == rows.count(len(known))


def _ids_of(id_map):
    return [7 * number - 500 for number in range(300)] if id_map == "pin" else [f"brand-{n}é" for n in range(12)]


def test_a_version_that_is_not_loaded_is_refused_with_those_that_are(release, lookup_client):
    with pytest.raises(VersionNotLoadedError, match="loaded by this lookup server") as refused:
        lookup_client.lookup("0" * 64, {"user": [1]})
    assert refused.value.loaded == (release.version,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"board": [1]}, r"unknown \['board'\].*has \['advertiser', 'pin', 'user'\]"),
        ({"user": ["x"]}, "'user' are string, but version .* has int64"),
        ({"advertiser": [7]}, "'advertiser' are int64, but version .* has string"),
        ({"user": range(16385)}, "16385 ids in one request: at most 16384"),
        ({"user": np.zeros((2, 2), np.int64)}, r"shape \(2, 2\)"),
        ({"user": [1.5]}, "expected integers or strings"),
        ({"user": [2**63]}, "beyond int64"),
        ({"user": ["a", None]}, "expected integers or strings"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_with_its_reason(release, lookup_client, ids, message):
    with pytest.raises(InvalidRequestError, match=message):
        lookup_client.lookup(release.version, ids)


def test_a_lookup_must_name_its_version(lookup_client):
    with pytest.raises(InvalidRequestError, match="names no version"):
        lookup_client.lookup("", {"user": [1]})


def test_a_message_beyond_the_limit_is_refused(release, transport):
    config = transport.config(releases=(release.path,), max_message_bytes=1000, max_ids_per_request=10**6)
    with LookupServer(config) as server, transport.connect(server) as client:
        with pytest.raises(OverloadedError, match="larger than max"):
            client.lookup(release.version, {"user": range(1000)})
        assert client.lookup(release.version, {"user": range(100)}).version == release.version


def test_describe_tells_tables_and_limits(release, lookup_client):
    description = lookup_client.describe()
    (version,) = description.versions
    assert version.version == release.version
    assert [(table.table, table.num_rows, table.row_bytes) for table in version.tables] == [
        (table.name, table.rows, table.row_bytes) for table in release.tables
    ]
    assert description.max_ids_per_request == 16384


def test_a_damaged_release_is_not_loaded_and_the_others_stay(release, other_release, transport, tmp_path):
    damaged = tmp_path / "damaged"
    _copy_with_a_flipped_byte(other_release.path, damaged)
    with LookupServer(transport.config(releases=(release.path,))) as server, transport.connect(server) as client:
        with pytest.raises(ValueError, match=r"lookup/pin_kge\.rows"):
            server.load(damaged)
        assert server.versions == (release.version,)
        assert client.lookup(release.version, {"user": [1000]}).version == release.version


def _copy_with_a_flipped_byte(source, target):
    shutil.copytree(source, target)
    rows = target / "lookup/pin_kge.rows"
    content = bytearray(rows.read_bytes())
    content[17] ^= 0x10
    rows.write_bytes(content)


def test_two_servers_never_share_one_address(release, tmp_path):
    for listen in ("127.0.0.1:0", f"unix:{tmp_path / 'a.sock'}"):
        config = LookupConfig(releases=(release.path,), listen=listen)
        with LookupServer(config) as first:
            second = LookupServer(config.model_copy(update={"listen": first.address}))
            with pytest.raises(OSError, match=r"cannot listen|another server listens"):
                second.start()
            second.stop()
            with LookupClient(first.address, timeout_s=10) as client:
                assert client.describe().versions
        with LookupServer(config.model_copy(update={"listen": first.address})):
            pass  # free again


def test_two_servers_never_share_one_framed_address(release, tmp_path):
    for listen in ("127.0.0.1:0", f"unix:{tmp_path / 'a.sock'}"):
        with LookupServer(LookupConfig(releases=(release.path,), framed_listen=listen)) as first:
            config = LookupConfig(releases=(release.path,), framed_listen=first.framed_address.removeprefix("framed:"))
            second = LookupServer(config)
            with pytest.raises(OSError, match=r"cannot listen|another server listens"):
                second.start()
            second.stop()
            with connect_lookup(first.framed_address, timeout_s=10) as client:
                assert client.describe().versions
        with LookupServer(config):
            pass  # free again


def test_metrics_count_rows_unknown_ids_and_statuses(release, transport):
    config = transport.config(releases=(release.path,), metrics_listen="127.0.0.1:0")
    with LookupServer(config) as server, transport.connect(server) as client:
        client.lookup(release.version, {"pin": [11, 12, 13], "user": [1000]})
        with pytest.raises(VersionNotLoadedError):
            client.lookup("0" * 64, {"user": [1]})
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
    assert 'multifacet_lookup_rows_total{table="pin_kge"} 3.0' in lines
    assert 'multifacet_lookup_unknown_ids_total{table="pin_kge"} 2.0' in lines
    assert 'multifacet_lookup_requests_total{code="OK"} 1.0' in lines
    assert 'multifacet_lookup_requests_total{code="FAILED_PRECONDITION"} 1.0' in lines
    assert 'multifacet_lookup_phase_seconds_count{phase="total"} 1.0' in lines


@pytest.mark.parametrize("address", ["127.0.0.1:9", "framed:127.0.0.1:9", "framed:unix:/nowhere/at/all.sock"])
def test_nobody_there_is_said_with_the_address(address):
    with connect_lookup(address, timeout_s=10) as client, pytest.raises(UnavailableError, match=f"lookup server {address}"):
        client.lookup("0" * 64, {"user": [1]})


def test_a_started_lookup_runs_while_its_caller_does_something_else(release, served, lookup_client):
    def answered() -> float:
        return served.metrics.registry.get_sample_value("multifacet_lookup_requests_total", {"code": "OK"}) or 0.0

    before = answered()
    pending = lookup_client.start(release.version, {"user": [1000]}, timeout_s=10)
    deadline = time.monotonic() + 8
    while answered() == before:  # nothing here reads the answer, or even waits for it in gRPC
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert pending.elapsed_us == 0
    assert pending.result().version == release.version
    assert pending.elapsed_us > 0


def test_a_lookup_that_was_given_up_says_so_and_leaves_the_connection_whole(release, lookup_client):
    pending = lookup_client.start(release.version, {"user": range(16000)})
    pending.cancel()
    with pytest.raises(ServingError, match="CANCELLED"):
        pending.result()
    assert lookup_client.lookup(release.version, {"user": [1000]}).version == release.version


def test_a_lookup_beyond_its_deadline_says_so(release, served, lookup_client, monkeypatch):
    fetch, late = served._fetch, threading.Event()

    def fetch_late(request, send):
        assert late.wait(10)
        return fetch(request, send)

    monkeypatch.setattr(served, "_fetch", fetch_late)
    if served._framed is not None:
        monkeypatch.setattr(served._framed, "_quick", lambda _frame, _descriptor: None)
    with pytest.raises(DeadlineExceededError, match="lookup server"):
        lookup_client.lookup(release.version, {"user": [1000]}, timeout_s=0.02)
    late.set()
    assert lookup_client.lookup(release.version, {"user": [1000]}).version == release.version


def test_huge_pages_change_no_row(release, lookup_client):
    ids = {"user": [1000, 1039, 5], "pin": [-500, 7, 8]}
    plain = lookup_client.lookup(release.version, ids)
    with (
        LookupServer(LookupConfig(releases=(release.path,), huge_pages=True)) as server,
        LookupClient(server.address) as client,
    ):
        huge = client.lookup(release.version, ids)
    assert {name: table.rows.tolist() for name, table in huge.tables.items()} == {
        name: table.rows.tolist() for name, table in plain.tables.items()
    }
