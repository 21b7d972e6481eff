"""One trace of a request over all hops: caller, ranker, lookup server; by OpenTelemetry, and nothing until it is started.

The trace's context goes as W3C's `traceparent <https://www.w3.org/TR/trace-context/>`_: in gRPC's metadata under that name, so
that callers and meshes with an instrumentation of their own take part, and in a framed lookup as an optional field of its
message, which servers that do not know it pass by. Until `start_tracing` is called nothing of OpenTelemetry is imported, no
context is sent and none is read; each place that could trace asks one global. A trace that its caller chose not to sample
goes on as its context alone.

Spans and their attributes, in the order in which they enclose one another:

    rank             of `RankerClient.rank`: request.id, server.address; from the answer: version, unknown_ids, without_tables
    Ranker/Rank      of the ranker: request.id, version, candidates, rows, unknown_ids, without_tables, phase.*_us
    lookup           of the ranker or a lookup's caller: version, server.address; of the answer: rows, unknown_ids, server_us
    Lookup/Lookup    of the lookup server: request.id, version, rows, unknown_ids, transport

Names of ours begin with "multifacet.". A span whose request failed has the error's class, status and text.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from multifacet.serving.errors import ServingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace import TracerProvider as SdkProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from multifacet.serving.protocol import ranker_pb2
    from multifacet.serving.wire.answers import LookupAnswer

__all__ = [
    "NOT_TRACED",
    "TRACEPARENT",
    "TraceFormatter",
    "Traced",
    "client_span",
    "current",
    "is_tracing",
    "parent_of",
    "read_frame",
    "server_span",
    "start_exporting",
    "start_tracing",
    "stop_tracing",
    "tell_lookup",
    "tell_rank",
    "tell_rows",
    "trace_headers",
    "traceparent",
]

TRACEPARENT: Final = "traceparent"
_REQUEST_ID, _TRACEPARENT_FIELD = 0x1A, 0x22
_MISSING: Final = "tracing needs OpenTelemetry: pip install 'multifacet[otel]', or pip install opentelemetry-sdk"
_MISSING_EXPORTER: Final = (
    "sending spans needs an exporter: pip install 'multifacet[otel]', or pip install opentelemetry-exporter-otlp-proto-http; "
    "without it give start_tracing a provider of your own"
)


class Traced:
    """What is told about one hop; this one, of a hop that is not traced, tells nobody.

    Attributes:
        is_recording: Whether somebody listens: what costs time to find out is not found out for nobody.
    """

    is_recording = False

    def tell(self, **attributes: str | int | bool) -> None:
        """Add attributes; "__" in a name stands for "."."""

    def fail(self, error: BaseException) -> None:
        """Say that the request failed; the first failure that is told stays."""


NOT_TRACED: Final = Traced()
_NOTHING: Final[AbstractContextManager[Traced]] = nullcontext(NOT_TRACED)


class _Span(Traced):
    def __init__(self, span: Span) -> None:
        self._span = span
        self.is_recording = span.is_recording()

    def tell(self, **attributes: str | int | bool) -> None:
        if self.is_recording:
            self._span.set_attributes({_name(name): value for name, value in attributes.items()})

    def fail(self, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - an extra, which is there

        if self.is_recording:
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:500]))
            code = error.code.name if isinstance(error, ServingError) else type(error).__name__
            self._span.set_attribute("error.type", code)


class _Tracing:
    """OpenTelemetry's parts that are used, imported once."""

    def __init__(self, provider: TracerProvider | None) -> None:
        try:
            from opentelemetry import context, trace  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self.context = context
        self.trace = trace
        self.tracer: Tracer = (provider or trace.get_tracer_provider()).get_tracer("multifacet.serving")

    def parent(self, text: str) -> Any:
        """The context of a traceparent; an empty one if it is none."""
        trace = self.trace
        parts = text.split("-")
        try:
            version, trace_id, span_id, flags = (int(part, 16) for part in parts[:4])
        except ValueError:
            return self.context.Context()
        right = [len(part) for part in parts[:4]] == [2, 32, 16, 2] and version != 255 and (version or len(parts) == 4)
        if not right or not trace_id or not span_id:
            return self.context.Context()
        remote = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags & 1))
        return trace.set_span_in_context(trace.NonRecordingSpan(remote), self.context.Context())

    def is_passed_over(self) -> bool:
        """Whether this code works for a trace that its caller chose not to sample: its context goes on, and no span is made."""
        found = self.trace.get_current_span().get_span_context()
        return found.is_valid and not found.trace_flags & 1

    def traceparent(self) -> str:
        """The current span as text; empty outside of any."""
        current = self.trace.get_current_span().get_span_context()
        return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}" if current.is_valid else ""


_tracing: _Tracing | None = None


def start_tracing(provider: TracerProvider | None = None) -> None:
    """Trace the requests of this process's servers and clients from now on, and put trace ids into its logs.

    Args:
        provider: Where spans go; None for OpenTelemetry's global provider, which an application has set, or which does nothing.

    Raises:
        ImportError: OpenTelemetry is not installed; the message has the line that installs it.

    Example:
        >>> from opentelemetry.sdk.trace import TracerProvider
        >>> start_tracing(TracerProvider())
        >>> is_tracing()
        True
        >>> stop_tracing()
    """
    global _tracing  # noqa: PLW0603 - what is on is on for the process, as logging is
    _tracing = _Tracing(provider)
    _mark_logs()


def start_exporting(role: str) -> SdkProvider:
    """Trace, and send spans as OpenTelemetry's environment variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER).

    Args:
        role: Which service spans are of, unless OTEL_SERVICE_NAME says otherwise: "multifacet-ranker".

    Returns:
        The provider, which sends what is left when the process ends.

    Raises:
        ImportError: OpenTelemetry's SDK or the exporter is not installed.
    """
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(_MISSING) from error
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(_MISSING_EXPORTER) from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": role}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    start_tracing(provider)
    return provider


def stop_tracing() -> None:
    """Trace nothing any more; the provider stays its owner's to shut down."""
    global _tracing  # noqa: PLW0603
    _tracing = None


def is_tracing() -> bool:
    """Whether requests are traced."""
    return _tracing is not None


def traceparent() -> str:
    """The current span's context, to send along; empty where nothing is traced."""
    return _tracing.traceparent() if _tracing is not None else ""


def trace_headers(metadata: tuple[tuple[str, str], ...] | None) -> tuple[tuple[str, str], ...] | None:
    """Metadata of a gRPC call with the current span's context; as it was where nothing is traced."""
    text = traceparent()
    return (*(metadata or ()), (TRACEPARENT, text)) if text else metadata


def client_span(name: str, **attributes: str | int | bool) -> AbstractContextManager[Traced]:
    """A span of a call to another server, current until the block ends."""
    if _tracing is None or _tracing.is_passed_over():
        return _NOTHING
    return _in_span(_tracing, name, "CLIENT", attributes, None)


def server_span(name: str, parent: str | None, **attributes: str | int | bool) -> AbstractContextManager[Traced]:
    """A span of a request that came with a traceparent, current until the block ends.

    Args:
        name: The method.
        parent: What the request came with; it is no error if it is nonsense or missing: the trace begins here then.
        attributes: As `Traced.tell`.
    """
    if _tracing is None:
        return _NOTHING
    context = _tracing.parent(parent or "")
    if context and not _tracing.trace.get_current_span(context).get_span_context().trace_flags & 1:
        return _within(_tracing, context)
    return _in_span(_tracing, name, "SERVER", attributes, context)


def parent_of(metadata: Any) -> str:
    """The traceparent in a gRPC call's metadata; nothing is read where nothing is traced."""
    return "" if _tracing is None else next((str(value) for key, value in metadata() if key == TRACEPARENT), "")


def read_frame(message: bytes | bytearray | memoryview) -> tuple[str, str]:
    """Request id and traceparent of a framed lookup's message, which is not parsed else; empty if it has none."""
    found = {_REQUEST_ID: "", _TRACEPARENT_FIELD: ""}
    place, stop = 0, len(message)
    while place < stop:
        tag, length, shift = message[place], 0, 0
        place += 1
        while place < stop and shift < 35:
            part = message[place]
            place += 1
            length |= (part & 127) << shift
            shift += 7
            if part < 128:
                break
        if tag in found:
            found[tag] = bytes(message[place : place + min(length, 200)]).decode(errors="replace")
        elif tag & 7 != 2:
            break  # no field of ours: whoever parses the message says what it is
        place += length
    return found[_REQUEST_ID], found[_TRACEPARENT_FIELD]


@contextmanager
def _within(tracing: _Tracing, context: Any) -> Iterator[Traced]:
    token = tracing.context.attach(context)
    try:
        yield NOT_TRACED
    finally:
        tracing.context.detach(token)


@contextmanager
def _in_span(
    tracing: _Tracing, name: str, kind: str, attributes: Mapping[str, str | int | bool], parent: Any
) -> Iterator[Traced]:
    trace = tracing.trace
    named = {_name(key): value for key, value in attributes.items()}
    span = tracing.tracer.start_span(name, context=parent, kind=trace.SpanKind[kind], attributes=named)
    token = tracing.context.attach(trace.set_span_in_context(span, parent))
    hop = _Span(span)
    try:
        yield hop
    except Exception as error:
        hop.fail(error)
        raise
    finally:
        tracing.context.detach(token)
        span.end()


def tell_rank(hop: Traced, answer: ranker_pb2.RankAnswer) -> None:
    """Tell what a ranking request got, and how long each of its phases took."""
    if hop.is_recording:
        hop.tell(**{f"phase__{field.name}": int(value) for field, value in answer.phases.ListFields()})
        told = {"candidates": len(answer.ctr), "unknown_ids": answer.num_unknown_ids, "without_tables": answer.without_tables}
        hop.tell(version=answer.version, **told)


def tell_lookup(hop: Traced, answer: LookupAnswer) -> None:
    """Tell what a lookup got."""
    if hop.is_recording:
        tables = answer.tables.values()
        rows, unknown_ids = sum(len(table.rows) for table in tables), sum(table.num_unknown_ids for table in tables)
        hop.tell(version=answer.version, rows=rows, unknown_ids=unknown_ids, server_us=answer.server_us)


def tell_rows(version: str, counts: Iterable[tuple[int, int]]) -> None:
    """Tell how many rows and unknown ids each table had in what this code works for."""
    hop = current()
    if hop.is_recording:
        rows, unknown_ids = (sum(column) for column in zip((0, 0), *counts, strict=True))
        hop.tell(version=version, rows=rows, unknown_ids=unknown_ids)


def current() -> Traced:
    """The hop that this code works for."""
    if _tracing is None:
        return NOT_TRACED
    span = _tracing.trace.get_current_span()
    return _Span(span) if span.is_recording() else NOT_TRACED


def _name(key: str) -> str:
    return "server.address" if key == "server_address" else f"multifacet.{key.replace('__', '.')}"


class TraceFormatter(logging.Formatter):
    """Lines of text that end with the ids of the trace that they belong to."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().format(record)
        trace_id = getattr(record, "trace_id", "")
        return f"{line} trace_id={trace_id} span_id={getattr(record, 'span_id', '')}" if trace_id else line


_make_record = logging.getLogRecordFactory()


def _mark_logs() -> None:
    """Give every log record `trace_id` and `span_id`, empty outside of spans, for whoever writes records as JSON."""
    global _make_record  # noqa: PLW0603
    if logging.getLogRecordFactory() is not _make_traced_record:
        _make_record = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_make_traced_record)


def _make_traced_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    record = _make_record(*arguments, **named)
    record.trace_id, record.span_id = (traceparent() or "---").split("-")[1:3]
    return record
