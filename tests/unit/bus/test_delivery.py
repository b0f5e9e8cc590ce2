"""`Delivery.from_message`: properties and headers are read once, and values of any type are accepted."""

from datetime import UTC, datetime
from typing import Any

import pytest
from aio_pika.message import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from bus.delivery import Delivery
from contracts.wire import Header


def read_delivery(body: bytes = b"{}", *, headers: dict[str, Any] | None = None, **properties: Any) -> Delivery:
    header = ContentHeader(properties=Basic.Properties(headers=headers, **properties))
    deliver = Basic.Deliver("tag", 1, False, "atelier.commands", "image")
    message = IncomingMessage(DeliveredMessage(delivery=deliver, header=header, body=body, channel=None), no_ack=True)  # type: ignore[arg-type]
    return Delivery.from_message(message, "atelier.image")


def test_missing_message_id_is_derived_from_body() -> None:
    """A foreign publisher that sets no id: the same body on the same queue is the same message."""
    assert read_delivery(b"one").message_id == read_delivery(b"one").message_id
    assert read_delivery(b"one").message_id != read_delivery(b"two").message_id


def test_job_id_is_correlation_id_or_message_id() -> None:
    assert read_delivery(message_id="m", correlation_id="j").job_id == "j"
    assert read_delivery(message_id="m").job_id == "m"


def test_origin_is_preserved_across_retries() -> None:
    """The broker names where the retry came from; our headers name where the message first arrived."""
    headers = {Header.ORIGIN_QUEUE.value: "q", Header.ORIGIN_EXCHANGE.value: "e", Header.ORIGIN_ROUTING_KEY.value: "k"}
    assert vars(read_delivery(headers=headers).origin) == {"queue": "q", "exchange": "e", "routing_key": "k"}
    assert vars(read_delivery().origin) == {"queue": "atelier.image", "exchange": "atelier.commands", "routing_key": "image"}


@pytest.mark.parametrize(
    ("value", "attempt", "redelivery_count"),
    [
        (3, 3, 3),
        ("3", 3, 3),
        (0, 1, 0),
        (-5, 1, -5),
        (2**63 - 1, 2**63 - 1, 2**63 - 1),
        ("many", 1, 0),
        ("2026-99-99", 1, 0),
        (b"\xff", 1, 0),
        (None, 1, 0),
        ([], 1, 0),
        ({}, 1, 0),
    ],
)
def test_counts_are_read_from_headers_or_default(value: Any, attempt: int, redelivery_count: int) -> None:
    """The largest integer is AMQP's own. `x-delivery-count` is the broker's header."""
    delivery = read_delivery(headers={Header.ATTEMPT.value: value, "x-delivery-count": value})
    assert (delivery.attempt, delivery.redelivery_count) == (attempt, redelivery_count)


@pytest.mark.parametrize("value", ["many", "", "2026-99-99", b"\xff", None, [], {}, -5, 2**63 - 1])
def test_invalid_deadline_is_ignored(value: Any) -> None:
    assert read_delivery(headers={Header.DEADLINE.value: value}).deadline is None


def test_deadline_without_time_zone_is_utc() -> None:
    assert read_delivery(headers={Header.DEADLINE.value: "2026-01-01T00:00:00"}).deadline == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("value", "tenant"), [("a" * 600, "a" * 512), (b"acme\xff", "acme\ufffd"), (7, None), ({}, None)])
def test_text_header_is_decoded_and_shortened(value: Any, tenant: str | None) -> None:
    assert read_delivery(headers={Header.TENANT.value: value}).tenant == tenant


def test_propagated_headers_are_deadline_tenant_and_trace() -> None:
    headers = {Header.TENANT.value: "acme", Header.TRACEPARENT.value: "00-a-b-01", "x-death": "broker's", Header.ATTEMPT.value: 3}
    assert read_delivery(headers=headers).propagated_headers == {"atelier-tenant": "acme", "traceparent": "00-a-b-01"}


def test_log_fields_are_request_and_trace_id() -> None:
    headers = {Header.REQUEST_ID.value: "r-1", Header.TRACEPARENT.value: "00-abc-def-01"}
    assert read_delivery(headers=headers).log_fields == {"request_id": "r-1", "trace_id": "abc"}
    assert read_delivery().log_fields == {}
