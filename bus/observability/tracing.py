"""OpenTelemetry traces, one per job: the request at the gateway, the wait in each queue, each step, its model calls and its publishing.

The attributes are those of OpenTelemetry's semantic conventions for HTTP, messaging and RabbitMQ, and our own, `atelier.…`.
Off without OTEL_EXPORTER_OTLP_ENDPOINT: nothing of OpenTelemetry is imported, and a span costs one comparison.
"""

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from bus.amqp.messages import OutboundMessage
from bus.delivery import Delivery
from bus.masking import mask_error, mask_text
from bus.observability.messaging_attributes import broker_attributes, delivery_attributes, messaging_span_name, publish_attributes
from bus.observability.metrics import HTTP_METHODS, outcome_labels
from bus.observability.settings import TracingSettings
from bus.outcome import DeadLettered, Outcome
from contracts.wire import Header

FLUSH_SECONDS = 3.0
TRACEPARENT, TRACESTATE = Header.TRACEPARENT.value, Header.TRACESTATE.value

MAX_PATH_CHARS = 300

_tracer: Any = None
_broker: dict[str, Any] = {}
"""The attributes of the broker, where a process has one."""


def is_enabled() -> bool:
    return _tracer is not None


@contextmanager
def open_tracing(service: str, settings: TracingSettings, broker_url: str | None = None) -> Iterator[None]:
    """Export the spans of the block to the collector, in batches, on a thread. `broker_url`: of the messages that they are about."""
    global _tracer, _broker
    if settings.exporter_otlp_endpoint is None or settings.sdk_disabled:
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(f"{settings.exporter_otlp_endpoint.rstrip('/')}/v1/traces", timeout=FLUSH_SECONDS)
    provider = TracerProvider(resource=Resource.create({"service.name": settings.service_name or f"atelier-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer, _broker = provider.get_tracer("atelier"), broker_attributes(broker_url) if broker_url else {}
    try:
        yield
    finally:
        _tracer, _broker = None, {}
        provider.shutdown()


@contextmanager
def trace_delivery(step: str, delivery: Delivery) -> Iterator[tuple[Delivery, Any]]:
    """Spans of a delivery's wait and of its processing. The yielded delivery carries the span as the parent of what it causes."""
    if _tracer is None:
        yield delivery, None
        return
    parent = {TRACEPARENT: delivery.traceparent or "", TRACESTATE: delivery.tracestate or ""}
    if delivery.published_at:
        published = int(delivery.published_at.timestamp() * 1e9)
        _tracer.start_span(f"wait {delivery.queue}", _parent_context(parent), start_time=min(published, time.time_ns())).end()
    attributes = delivery_attributes(step, delivery)
    with _span(messaging_span_name(attributes), "CONSUMER", parent, attributes | _broker) as (span, headers):
        yield replace(delivery, traceparent=headers[TRACEPARENT], tracestate=headers.get(TRACESTATE)), span


@contextmanager
def trace_publish(messages: Sequence[OutboundMessage]) -> Iterator[None]:
    """A span for each destination, from the publishing of a delivery's messages to the last confirm; all are children of the current one.

    Its kind is that of a client: the parent of what the messages cause is the span of the delivery. When the publishing fails, all have
    the error: the messages are confirmed together.
    """
    if _tracer is None:
        yield
        return
    destinations: dict[tuple[str, str], list[OutboundMessage]] = {}
    for message in messages:
        destinations.setdefault((message.exchange, message.routing_key), []).append(message)
    from opentelemetry.context import get_current

    parent = get_current()
    with ExitStack() as stack:
        for group in destinations.values():
            attributes = publish_attributes(group) | _broker
            stack.enter_context(trace_call(messaging_span_name(attributes), attributes, parent))
        yield


@contextmanager
def trace_call(name: str, attributes: dict[str, Any], parent: Any = None) -> Iterator[Any]:
    """A span of a call of the broker or of a model. `parent`: a context; None: the current one. Only where tracing is enabled."""
    from opentelemetry.trace import SpanKind

    with _masked_span(name, parent, SpanKind.CLIENT, attributes) as span:
        yield span


@contextmanager
def trace_request(propagated: Mapping[str, str], incoming: Mapping[str, str]) -> Iterator[tuple[dict[str, str], Any]]:
    """A span of an HTTP request. `incoming`: its headers; `propagated`: headers for its messages, yielded with the span as their parent."""
    if _tracer is None:
        yield dict(propagated), None
        return
    parent = {name: incoming.get(name, "") for name in (TRACEPARENT, TRACESTATE)}
    with _span("request", "SERVER", parent, {}) as (span, headers):
        yield {**{name: value for name, value in propagated.items() if name != TRACESTATE}, **headers}, span


def set_outcome(span: Any, outcome: Outcome) -> None:
    if span is None:
        return
    name, code = outcome_labels(outcome)
    span.set_attributes({"atelier.outcome": name, "error.type": code} if code else {"atelier.outcome": name})
    if isinstance(outcome, DeadLettered):
        _set_error(span, outcome.fault.code)


def set_dead_lettered(span: Any, code: str) -> None:
    """Mark the span of a message that an adapter dead-lettered; `code` is empty for a translated one."""
    if span is not None and code:
        span.set_attributes({"atelier.outcome": "dead", "error.type": code})
        _set_error(span, code)


def set_response(span: Any, scope: Mapping[str, Any], route: str, status: int) -> None:
    """`scope`: of ASGI. `route`: the template of the path."""
    if span is None:
        return
    method = str(scope["method"])
    known = method in HTTP_METHODS
    span.update_name(f"{method if known else 'HTTP'} {route}")
    span.set_attributes(
        {
            "http.request.method": method if known else "_OTHER",
            "http.route": route,
            "http.response.status_code": status,
            "url.scheme": str(scope.get("scheme", "http")),
            "url.path": mask_text(str(scope["path"]))[:MAX_PATH_CHARS],
        }
    )
    if status >= 500:
        span.set_attribute("error.type", str(status))
        _set_error(span, str(status))


@contextmanager
def _span(name: str, kind: str, parent: Mapping[str, str], attributes: dict[str, Any]) -> Iterator[tuple[Any, dict[str, str]]]:
    """A span, and its id as W3C trace context headers."""
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    with _masked_span(name, _parent_context(parent), SpanKind[kind], attributes) as span:
        TraceContextTextMapPropagator().inject(headers)
        yield span, headers


@contextmanager
def _masked_span(name: str, context: Any, kind: Any, attributes: dict[str, Any]) -> Iterator[Any]:
    """A span that records an exception as OpenTelemetry does, but without secrets."""
    options = {"record_exception": False, "set_status_on_exception": False}
    with _tracer.start_as_current_span(name, context, kind=kind, attributes=attributes, **options) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            text = {"exception.type": type(error).__qualname__, "exception.message": mask_error(error)}
            span.add_event("exception", {**text, "exception.stacktrace": mask_text("".join(traceback.format_exception(error)))})
            _set_error(span, f"{type(error).__name__}: {mask_error(error)}")
            raise


def _parent_context(parent: Mapping[str, str]) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(parent, Context())


def _set_error(span: Any, code: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, code))
