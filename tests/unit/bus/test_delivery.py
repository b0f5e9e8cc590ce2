"""`Delivery.from_message`: properties and headers are read once, and values of any type are accepted."""

import json
import struct
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from aio_pika.message import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from bus.amqp.header_values import COUNT_LIMIT, EARLIEST, LATEST
from bus.amqp.publisher import Publisher
from bus.amqp.tolerant_decoding import PROPERTIES_LIMIT, make_decoding_tolerant
from bus.delivery import Delivery
from bus.outcome import DeadLettered, Retry, fault_from_error, format_stack
from bus.worker.outgoing import StepRun, build_dead_letter, build_retry
from contracts.wire import Header
from tests.support.hostile_messages import NON_FINITE_FIELDS, OUR_HEADERS, encode_properties, entry, hostile_messages, table


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
        (-5, 1, 0),
        (2**63 - 1, COUNT_LIMIT, COUNT_LIMIT),
        ("9" * 26, COUNT_LIMIT, COUNT_LIMIT),
        ("9" * 5000, 1, 0),
        (1e308, COUNT_LIMIT, COUNT_LIMIT),
        (float("inf"), 1, 0),
        (float("-inf"), 1, 0),
        (float("nan"), 1, 0),
        (Decimal(7), 7, 7),
        (datetime(2026, 1, 1, tzinfo=UTC), 1, 0),
        ("many", 1, 0),
        ("2026-99-99", 1, 0),
        (b"\xff", 1, 0),
        (None, 1, 0),
        ([], 1, 0),
        ({}, 1, 0),
    ],
)
def test_counts_are_read_from_headers_or_default(value: Any, attempt: int, redelivery_count: int) -> None:
    """`x-delivery-count` is the broker's header."""
    delivery = read_delivery(headers={Header.ATTEMPT.value: value, "x-delivery-count": value})
    assert (delivery.attempt, delivery.redelivery_count) == (attempt, redelivery_count)


@pytest.mark.parametrize("value", ["many", "", "2026-99-99", b"\xff", None, [], {}, -5, 2**63 - 1])
def test_invalid_deadline_is_ignored(value: Any) -> None:
    assert read_delivery(headers={Header.DEADLINE.value: value}).deadline is None


def test_deadline_without_time_zone_is_utc() -> None:
    assert read_delivery(headers={Header.DEADLINE.value: "2026-01-01T00:00:00"}).deadline == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("value", "text"), [("a" * 600, "a" * 512), (b"acme\xff", "acme\ufffd"), (7, None), ({}, None)])
def test_text_header_is_decoded_and_shortened(value: Any, text: str | None) -> None:
    assert read_delivery(headers={Header.REQUEST_ID.value: value}).request_id == text


@pytest.mark.parametrize("value", ["a" * 256, b"acme\xff", "a\0", 7, {}])
def test_tenant_that_breaks_the_rule_of_ids_is_refused_and_carried_no_further(value: Any) -> None:
    delivery = read_delivery(headers={Header.TENANT.value: value})
    assert (delivery.tenant, delivery.refused_id) == (None, Header.TENANT)
    assert Header.TENANT not in delivery.propagated_headers


def test_propagated_headers_are_deadline_tenant_and_trace() -> None:
    headers = {Header.TENANT.value: "acme", Header.TRACEPARENT.value: "00-a-b-01", "x-death": "broker's", Header.ATTEMPT.value: 3}
    assert read_delivery(headers=headers).propagated_headers == {"atelier-tenant": "acme", "traceparent": "00-a-b-01"}


def test_log_fields_are_request_and_trace_id() -> None:
    headers = {Header.REQUEST_ID.value: "r-1", Header.TRACEPARENT.value: "00-abc-def-01"}
    assert read_delivery(headers=headers).log_fields == {"request_id": "r-1", "trace_id": "abc"}
    assert read_delivery().log_fields == {}


PUBLISHER = Publisher(None, None, 1.0, "worker")  # type: ignore[arg-type] # only encodes properties
NON_FINITE = [encode_properties(headers=table(*(entry(name, field) for name in OUR_HEADERS))) for field in NON_FINITE_FIELDS.values()]


def receive(properties: bytes) -> Delivery:
    """The delivery of a message with these raw properties."""
    make_decoding_tolerant()
    header = ContentHeader()
    header.unmarshal(struct.pack(">HHQ", 60, 0, 2) + properties)
    deliver = Basic.Deliver("tag", 1, False, "atelier.commands", "image")
    message = IncomingMessage(DeliveredMessage(delivery=deliver, header=header, body=b"{}", channel=None), no_ack=True)  # type: ignore[arg-type]
    return Delivery.from_message(message, "atelier.image")


@pytest.mark.parametrize("properties", [*(message.properties for message in hostile_messages(rounds=3)), *NON_FINITE])
def test_hostile_message_gives_a_delivery_that_can_be_published_stored_and_logged(properties: bytes) -> None:
    """Its retry and its dead letter are encoded as the publisher encodes them; no text holds what Postgres refuses."""
    delivery = receive(properties)
    run = StepRun(delivery, "image", "worker", None, datetime.now(UTC))
    fault = fault_from_error(RuntimeError("x"), "code", "image", delivery.attempt)
    now = datetime.now(UTC)
    for message in (build_retry(run, Retry(1.0, fault), now=now), *build_dead_letter(run, DeadLettered(fault), now=now)):
        PUBLISHER.encode_properties(message)
    text = json.dumps(asdict(delivery), default=str, ensure_ascii=False)
    assert "\\u0000" not in text
    assert text.encode()


def test_two_ids_with_unsafe_characters_stay_two() -> None:
    """Replacing the characters alone would make one id of them, and the second message a duplicate of the first."""
    first, second = read_delivery(message_id="a\x00"), read_delivery(message_id="a\x01")
    assert first.message_id != second.message_id
    assert first.message_id == read_delivery(message_id="a\x00").message_id
    assert first.message_id.isprintable()


@pytest.mark.parametrize(
    ("value", "deadline"),
    [
        ("0001-01-01T00:00:00+14:00", EARLIEST),
        ("9999-12-31T23:59:59-14:00", LATEST),
        ("2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_deadline_out_of_range_is_clamped(value: str, deadline: datetime) -> None:
    """An expired one stays expired."""
    assert read_delivery(headers={Header.DEADLINE.value: value}).deadline == deadline


def test_undecodable_message_has_new_ids_and_its_reason() -> None:
    properties = encode_properties(message_id=b"\x02\xff\xfe")
    first, second = receive(properties), receive(properties)
    assert first.message_id == first.job_id
    assert first.message_id != second.message_id
    assert "message_id is not UTF-8" in (first.undecodable or "")
    assert (first.tenant, first.reply_to, first.type) == (None, None, None)


def test_largest_dead_letter_can_be_read_back() -> None:
    """Its properties stay below the limit of those that are decoded, whatever its publisher and its error wrote."""
    longest = "\U0001f600" * 5000
    texts = {header.value: longest for header in Header if header not in {Header.DETACHED, Header.ATTEMPT, Header.REPLAY}}
    delivery = read_delivery(
        headers=texts | {Header.DETACHED.value: True}, message_id="m" * 255, correlation_id="c" * 255, message_type="t" * 255
    )
    try:
        raise RuntimeError(longest)
    except RuntimeError as error:
        outcome = DeadLettered(fault_from_error(error, "code", "image", 1), format_stack(error))
    run = StepRun(delivery, "image", "worker", None, datetime.now(UTC))
    letter = build_dead_letter(run, outcome, now=datetime.now(UTC))[0]
    assert len(PUBLISHER.encode_properties(letter)) + 12 < PROPERTIES_LIMIT
