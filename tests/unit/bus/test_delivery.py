"""A delivery is read once, and nothing a stranger writes into it can break the reading."""

from datetime import UTC, datetime
from typing import Any

import pytest
from aio_pika.message import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from bus.delivery import Delivery
from contracts.wire import Header


def delivery(body: bytes = b"{}", *, headers: dict[str, Any] | None = None, **properties: Any) -> Delivery:
    header = ContentHeader(properties=Basic.Properties(headers=headers, **properties))
    deliver = Basic.Deliver("tag", 1, False, "atelier.commands", "image")
    raw = IncomingMessage(DeliveredMessage(delivery=deliver, header=header, body=body, channel=None), no_ack=True)  # type: ignore[arg-type]
    return Delivery.from_message(raw, "atelier.image")


def test_missing_message_id_is_derived_from_body() -> None:
    """A foreign publisher that sets no id: the same body on the same queue is the same message."""
    assert delivery(b"one").message_id == delivery(b"one").message_id
    assert delivery(b"one").message_id != delivery(b"two").message_id


def test_job_id_is_correlation_id_or_message_id() -> None:
    assert delivery(message_id="m", correlation_id="j").job_id == "j"
    assert delivery(message_id="m").job_id == "m"


def test_origin_is_preserved_across_retries() -> None:
    """The broker says where the copy came from; our headers say where the message did."""
    headers = {Header.ORIGIN_QUEUE.value: "q", Header.ORIGIN_EXCHANGE.value: "e", Header.ORIGIN_ROUTING_KEY.value: "k"}
    assert vars(delivery(headers=headers).origin) == {"queue": "q", "exchange": "e", "routing_key": "k"}
    assert vars(delivery().origin) == {"queue": "atelier.image", "exchange": "atelier.commands", "routing_key": "image"}


@pytest.mark.parametrize("nonsense", ["many", None, b"\xff", [], {}, "2026-99-99", -5, 10**30])
def test_invalid_header_values_are_ignored(nonsense: Any) -> None:
    names = [Header.ATTEMPT, Header.DEADLINE, "x-delivery-count"]
    read = delivery(headers={str(name): nonsense for name in names} if nonsense != 10**30 else {})
    assert read.attempt >= 1
    assert read.deadline is None


def test_a_deadline_without_a_zone_is_utc() -> None:
    assert delivery(headers={Header.DEADLINE.value: "2026-01-01T00:00:00"}).deadline == datetime(2026, 1, 1, tzinfo=UTC)


def test_propagated_headers_are_deadline_tenant_and_trace() -> None:
    headers = {Header.TENANT.value: "acme", Header.TRACEPARENT.value: "00-a-b-01", "x-death": "broker's", Header.ATTEMPT.value: 3}
    assert delivery(headers=headers).propagated_headers == {"atelier-tenant": "acme", "traceparent": "00-a-b-01"}
