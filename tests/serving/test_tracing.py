"""One trace goes over all hops of real servers, and nothing is traced until it is asked for."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import importlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifacet.serving import (
    AsyncRankerClient,
    LookupClient,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    ServingError,
    connect_lookup,
    start_tracing,
    stop_tracing,
    tracing,
)
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.release.release import Release
from multifacet.serving.wire.packing import pack_lookup

trace_sdk = pytest.importorskip(
    "opentelemetry.sdk.trace", reason="OpenTelemetry is not installed: pip install 'multifacet[otel]'"
)
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[Any]:
    """An exporter that keeps what ended."""
    exporter = memory.InMemorySpanExporter()
    provider = trace_sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    factory = logging.getLogRecordFactory()
    start_tracing(provider)
    yield exporter
    stop_tracing()
    logging.setLogRecordFactory(factory)


def by_name(exporter: Any, *, at_least: int = 0) -> dict[str, Any]:
    """Ended spans by name; a server's may end just after its client has the answer."""
    deadline = threading.Event()
    for _ in range(200):
        if len(exporter.get_finished_spans()) >= at_least:
            break
        deadline.wait(0.01)
    return {span.name: span for span in exporter.get_finished_spans()}


def rank(client: RankerClient, request_of: Any, **named: Any) -> Any:
    user, pins, dense = request_of(20)
    return client.rank(user, pins, dense=dense, **named)


def test_a_request_is_one_trace_over_every_hop(ranker_client: RankerClient, request_of: Any, spans: Any) -> None:
    answer = rank(ranker_client, request_of, request_id="r-7")
    found = by_name(spans, at_least=4)
    assert sorted(found) == ["Lookup/Lookup", "Ranker/Rank", "lookup", "rank"]
    assert len({span.context.trace_id for span in found.values()}) == 1
    for child, parent in (("Ranker/Rank", "rank"), ("lookup", "Ranker/Rank"), ("Lookup/Lookup", "lookup")):
        assert found[child].parent.span_id == found[parent].context.span_id, child
    for name, span in found.items():
        assert span.attributes["multifacet.version"] == answer.version, name
        assert span.attributes["multifacet.request.id"] == "r-7", name
        assert span.attributes["multifacet.unknown_ids"] == answer.num_unknown_ids, name
    ranked = found["Ranker/Rank"].attributes
    assert ranked["multifacet.candidates"] == 20
    assert ranked["multifacet.phase.total_us"] == answer.phases["total_us"]
    assert ranked["multifacet.phase.lookup_us"] >= ranked["multifacet.phase.lookup_wait_us"]
    assert found["Lookup/Lookup"].attributes["multifacet.rows"] == found["lookup"].attributes["multifacet.rows"] > 20


def test_a_caller_with_an_instrumentation_of_its_own_is_the_parent(lookup_client: Any, release: Release, spans: Any) -> None:
    with tracing.server_span("front", PARENT):
        answer = lookup_client.lookup(release.version, {"user": [1, -5]}, request_id="mine")
    found = by_name(spans, at_least=3)
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {PARENT.split("-")[1]}
    assert f"{found['front'].parent.span_id:016x}" == PARENT.split("-")[2]
    assert found["Lookup/Lookup"].attributes["multifacet.request.id"] == "mine"
    tables = answer.tables.values()
    assert found["Lookup/Lookup"].attributes["multifacet.rows"] == sum(len(table.rows) for table in tables) == 4
    assert found["Lookup/Lookup"].attributes["multifacet.unknown_ids"] == sum(table.num_unknown_ids for table in tables) > 0


def test_an_asynchronous_client_takes_part(ranker_server: RankerServer, request_of: Any, spans: Any) -> None:
    async def ask() -> Any:
        async with AsyncRankerClient(ranker_server.address) as client:
            user, pins, dense = request_of(5)
            return await client.rank(user, pins, dense=dense)

    asyncio.run(ask())
    found = by_name(spans, at_least=4)
    assert found["Ranker/Rank"].parent.span_id == found["rank"].context.span_id


def test_several_lookup_servers_stand_below_one_span(release: Release, tmp_path: Path, spans: Any) -> None:
    configs = [LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path}/{name}") for name in "ab"]
    with LookupServer(configs[0]) as first, LookupServer(configs[1]) as second:
        with connect_lookup(f"{first.framed_address},{second.framed_address}") as client:
            client.lookup(release.version, {"user": [1, 2]})
        found = by_name(spans, at_least=2)
    assert found["Lookup/Lookup"].parent.span_id == found["lookup"].context.span_id


def test_failures_are_told_on_every_hop_and_in_the_logs(
    ranker_client: RankerClient, request_of: Any, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "multifacet"), pytest.raises(ServingError):
        rank(ranker_client, request_of, version="f" * 64, request_id="lost")
    found = by_name(spans, at_least=2)
    assert sorted(found) == ["Ranker/Rank", "rank"]
    assert {span.status.status_code.name for span in found.values()} == {"ERROR"}
    assert found["rank"].attributes["error.type"] == "FAILED_PRECONDITION"
    refused = next(record for record in caplog.records if "'lost' refused" in record.getMessage())
    assert refused.trace_id == f"{found['Ranker/Rank'].context.trace_id:032x}"
    assert refused.span_id == f"{found['Ranker/Rank'].context.span_id:016x}"
    line = tracing.TraceFormatter("%(message)s").format(refused)
    assert line.endswith(f"trace_id={refused.trace_id} span_id={refused.span_id}")
    elsewhere = logging.makeLogRecord({"msg": "before any span"})
    assert tracing.TraceFormatter("%(message)s").format(elsewhere) == "before any span"


def test_a_refused_frame_is_told(release: Release, tmp_path: Path, spans: Any) -> None:
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path}/lookup")
    with LookupServer(config) as server, connect_lookup(server.framed_address) as client:
        with pytest.raises(ServingError):
            client.lookup(release.version, {"nobody": [1]})
        found = by_name(spans, at_least=2)
    assert found["Lookup/Lookup"].attributes["error.type"] == "INVALID_ARGUMENT"
    assert found["Lookup/Lookup"].status.status_code.name == "ERROR"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "00-0-0-01",
        PARENT.replace("b7ad6b7169203331", "0" * 16),
        f"{PARENT}-more",
        PARENT.replace("00-", "ff-", 1),
        "\xe9" * 99,
    ],
)
def test_a_parent_that_is_none_begins_a_trace(text: str, spans: Any) -> None:
    with tracing.server_span("front", text):
        pass
    span = by_name(spans)["front"]
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != PARENT.split("-")[1]


def test_a_caller_that_is_not_sampled_stays_so(spans: Any) -> None:
    with tracing.server_span("front", PARENT[:-1] + "0") as hop:
        assert not hop.is_recording
        assert tracing.traceparent().endswith("-00")
    assert by_name(spans) == {}


def test_old_peers_pass_the_field_by_and_new_ones_find_it() -> None:
    parts = pack_lookup("v" * 64, {"pin": np.arange(300)}, "id", PARENT)
    message = b"".join(parts)
    assert tracing.read_frame(message) == ("id", PARENT)
    assert tracing.read_frame(b"".join(pack_lookup("v", {"pin": ["a"]}))) == ("", "")
    for stop in range(len(message)):  # a message that is cut
        tracing.read_frame(message[:stop])
    assert lookup_pb2.LookupRequest.FromString(message).traceparent == PARENT
    unknown = message + b"\xfa\x01\x03abc"  # field 31: a field of tomorrow
    assert len(lookup_pb2.LookupRequest.FromString(unknown).features) == 1


def test_a_frame_with_a_context_is_answered_by_the_kernel(release: Release, tmp_path: Path, spans: Any) -> None:
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path}/lookup")
    with LookupServer(config) as server, connect_lookup(server.framed_address) as client:
        general = []
        before = server._lookup_framed
        server._lookup_framed = lambda request: general.append(request) or before(request)  # type: ignore[method-assign]
        client.lookup(release.version, {"user": [1, 2, 3]}, request_id="quick")
        found = by_name(spans, at_least=2)
    assert general == []
    assert found["Lookup/Lookup"].attributes["multifacet.rows"] == 6


def test_nothing_is_imported_sent_or_kept_until_it_is_asked_for(lookup_client: Any, release: Release) -> None:
    assert not tracing.is_tracing()
    assert tracing.client_span("lookup") is tracing.client_span("rank")
    assert tracing.trace_headers(None) is None
    assert tracing.traceparent() == ""
    assert b"traceparent" not in b"".join(pack_lookup(release.version, {"user": [1]}, "id", tracing.traceparent()))
    program = "import sys, multifacet.serving as s; s.RankerClient, s.LookupServer; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "opentelemetry" not in ran.stdout


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'multifacet\[otel\]'"):
        start_tracing()
    assert not tracing.is_tracing()


@pytest.mark.slow
def test_a_server_process_sends_its_spans_by_otlp(release: Release, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="OTLP's exporter is not installed")
    messages = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[Any] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.append(messages.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    address = f"unix:{tmp_path}/lookup"
    config = {"releases": [str(release.path)], "listen": address, "tracing": "otlp"}
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "multifacet.serving", "lookup", "--stop-at-stdin-end", "--config-json", json.dumps(config)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as server:
        try:
            with LookupClient(address) as client:
                client.wait_for_versions([release.version], timeout_s=60)
                client.lookup(release.version, {"user": [1, 2]}, request_id="over there")
        finally:
            _, said = server.communicate(timeout=30)
    collector.shutdown()
    thread.join()
    collector.server_close()
    assert server.returncode == 0, said
    resources = [resource for request in received for resource in request.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    told = {attribute.key: attribute.value for attribute in spans[0].attributes}
    assert [span.name for span in spans] == ["Lookup/Lookup"]
    assert told["multifacet.request.id"].string_value == "over there"
    assert told["multifacet.rows"].int_value == 4
    names = {attribute.key: attribute.value.string_value for attribute in resources[0].resource.attributes}
    assert names["service.name"] == "multifacet-lookup"


def test_the_configuration_says_how(release: Release) -> None:
    assert LookupConfig(releases=(release.path,)).tracing == "off"
    with pytest.raises(ValueError, match="tracing"):
        RankerConfig(releases=(release.path,), lookup="127.0.0.1:1", tracing="zipkin")
