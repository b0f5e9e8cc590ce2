"""A trace collector for tests: OTLP over HTTP on loopback, like the OpenTelemetry collector."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class RecordedSpan:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    kind: str = ""


@dataclass
class OtlpCollector:
    url: str
    spans: list[RecordedSpan] = field(default_factory=list)

    def receive(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(item.value.string_value for item in resource.resource.attributes if item.key == "service.name")
            self.spans += [to_recorded_span(service, span) for scope in resource.scope_spans for span in scope.spans]


def to_recorded_span(service: str, span: Any) -> RecordedSpan:
    attributes = {item.key: to_value(item.value) for item in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
    return RecordedSpan(service, span.name, *ids, attributes, span.status.code == 2, kind)


def to_value(value: Any) -> Any:
    """A number, a text, or a list of them."""
    kind = value.WhichOneof("value")
    return [to_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def open_collector() -> Iterator[OtlpCollector]:
    class TraceHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            collector.receive(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            response = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(response)))
            self.end_headers()
            self.wfile.write(response)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), TraceHandler) as server:
        collector = OtlpCollector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
