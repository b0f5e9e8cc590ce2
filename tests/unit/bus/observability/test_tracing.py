"""Spans of publishing, exported to a real receiver."""

from contextlib import suppress

import pytest

from bus.amqp.messages import OutboundMessage
from bus.observability.settings import TracingSettings
from bus.observability.tracing import open_tracing, trace_call, trace_publish
from tests.support.otlp_collector import RecordedSpan, open_collector

MESSAGES = [OutboundMessage("e", f"key-{number % 3}", b"", f"m{number}", "j", "t") for number in range(4)]


def publish_spans(error: Exception | None = None) -> tuple[RecordedSpan, list[RecordedSpan]]:
    """The span around the publishing, and those of the destinations."""
    with open_collector() as collector:
        tracing = open_tracing("tests", TracingSettings(exporter_otlp_endpoint=collector.url))
        with tracing, trace_call("process", {}):
            with suppress(ConnectionError), trace_publish(MESSAGES):
                if error:
                    raise error
            with trace_call("after", {}):
                pass
    [process, after] = (span for name in ("process", "after") for span in collector.spans if span.name == name)
    assert after.parent == process.id
    return process, [span for span in collector.spans if span not in (process, after)]


@pytest.mark.parametrize("error", [None, ConnectionError("gone")])
def test_spans_of_destinations_are_siblings(error: Exception | None) -> None:
    """Also where publishing fails, which is the failure of all: they are confirmed together."""
    process, published = publish_spans(error)
    assert [span.parent for span in published] == [process.id] * 3
    assert {span.failed for span in published} == {error is not None}
    assert not process.failed
