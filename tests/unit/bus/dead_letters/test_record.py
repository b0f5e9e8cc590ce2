"""The record of a dead letter, its group, and the message of a replay. No network."""

import json
import math
import random
import re
import time
from decimal import Decimal
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import pytest

from bus.amqp import signing
from bus.amqp.messages import OutboundMessage
from bus.amqp.tolerant_decoding import ReceivedHeaders
from bus.dead_letters.record import MAX_HEADER_DEPTH, compute_group_id, stack_fingerprint, to_json_value
from bus.dead_letters.relay import batch_size
from bus.dead_letters.replay import validate_body
from bus.dead_letters.replay_message import build_replay_message, replay_differences
from bus.errors import PermanentError
from bus.outcome import DeadLettered, fault_from_error
from bus.worker.raw_dead_letter import build_raw_dead_letter
from contracts.wire import Header
from tests.support.dead_letter_records import NOW, make_record
from tests.support.hostile_messages import encode_properties, entry, long, short, table

STACK = """Traceback (most recent call last):
  File "/srv/old/bus/worker/consumer.py", line 10, in decide
    return await self.handle(command)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/old/actors/image.py", line 77, in image
    raise KeyError(name)
KeyError: 'lora 17'
"""


def x_death_entry(queue: str, reason: str, **more: Any) -> dict[str, Any]:
    return {"queue": queue, "reason": reason, "count": 1, "exchange": "orders", "routing-keys": ["order.new"], "time": NOW} | more


def test_fingerprint_ignores_line_numbers_folders_and_values() -> None:
    """The same calls, in another folder, on another line, and with another message."""
    other = STACK.replace("/srv/old", "/app").replace("line 77", "line 80").replace("lora 17", "lora 18")
    assert stack_fingerprint(STACK) == stack_fingerprint(other) == ("worker/consumer.py:decide", "actors/image.py:image")


def test_fingerprint_keeps_innermost_frames() -> None:
    """The outer frames may be cut off in one letter and not in another."""
    frames = "".join(f'  File "a/f{number}.py", line 1, in f\n    x()\n' for number in range(20))
    assert stack_fingerprint(frames) == stack_fingerprint(frames[200:])
    assert stack_fingerprint(frames)[-1] == "a/f19.py:f"


@pytest.mark.parametrize("stack", ["", "KeyError: 'x'", 'File "half', "\ud800", "x" * 100_000])
def test_missing_stack_has_no_fingerprint(stack: str) -> None:
    assert stack_fingerprint(stack) == ()


def test_group_id_differs_for_each_part_of_a_cause() -> None:
    groups = {
        compute_group_id("image", "a", "KeyError", ("f",)),
        compute_group_id("webhook", "a", "KeyError", ("f",)),
        compute_group_id("image", "b", "KeyError", ("f",)),
        compute_group_id("image", "a", "OSError", ("f",)),
        compute_group_id("image", "a", "KeyError", ("g",)),
        compute_group_id("image", "a", None, ()),
    }
    assert len(groups) == 6


def test_dead_letter_record_contains_cause() -> None:
    letter = make_record(
        {
            Header.ORIGIN_QUEUE.value: "atelier.image",
            Header.ORIGIN_EXCHANGE.value: "atelier.commands",
            Header.ORIGIN_ROUTING_KEY.value: "image",
            Header.FAULT_CODE.value: "lora-missing",
            Header.FAULT_MESSAGE.value: "no such file",
            Header.EXCEPTION_TYPE.value: "PermanentError",
            Header.ATTEMPT.value: 3,
            Header.TENANT.value: "acme",
            Header.FIRST_FAILED_AT.value: "2026-01-01T00:00:00+00:00",
            Header.LAST_FAILED_AT.value: "2026-01-01T00:05:00",
        }
    )
    assert (letter.step, letter.target, letter.code, letter.message, letter.attempts) == (
        "image",
        "atelier.image",
        "lora-missing",
        "no such file",
        3,
    )
    assert (letter.origin_exchange, letter.origin_key, letter.tenant) == ("atelier.commands", "image", "acme")
    assert (letter.first_failed_at, letter.last_failed_at) == (NOW, NOW.replace(minute=5))


@pytest.mark.parametrize(
    ("queue", "headers", "step", "target", "code"),
    [
        ("orders.dlq", {"x-death": [x_death_entry("orders", "rejected")]}, "orders", "orders", "broker-rejected"),
        ("orders.dlq", {"x-death": [x_death_entry("orders", "delivery_limit")]}, "orders", "orders", "broker-delivery-limit"),
        (
            "orders.dlq",
            {"x-first-death-queue": "orders", "x-death": [x_death_entry("orders.wait", "expired"), x_death_entry("orders", "maxlen")]},
            "orders",
            "orders",
            "broker-maxlen",
        ),
        (
            "orders.dlq",
            {"x-death": [x_death_entry("orders.wait", "expired"), x_death_entry("orders", "rejected")]},
            "orders",
            "orders",
            "broker-rejected",
        ),
        ("orders.dlq", {}, "orders.dlq", None, "unknown"),
        ("orders.dlq", {"x-death": "nonsense"}, "orders.dlq", None, "unknown"),
        ("dlq", {"x-death": [x_death_entry("image_generation", "rejected")]}, "image_generation", "image_generation", "broker-rejected"),
        ("atelier.dead.image", {}, "image", "atelier.image", "unknown"),
        ("atelier.dead.image_generation", {}, "image_generation", "image_generation", "unknown"),
        ("dlq", {"x-death": [x_death_entry("atelier.upload", "rejected")]}, "upload", "atelier.upload", "broker-rejected"),
    ],
)
def test_dead_letter_origin_is_read_from_headers(queue: str, headers: dict[str, Any], step: str, target: str | None, code: str) -> None:
    letter = make_record(headers, queue=queue)
    assert (letter.step, letter.target, letter.code) == (step, target, code)


def test_record_id_is_unique_per_failure() -> None:
    first = make_record({Header.LAST_FAILED_AT.value: "2026-01-01T00:05:00+00:00"})
    second = make_record({Header.LAST_FAILED_AT.value: "2026-01-01T00:06:00+00:00"})
    assert first == make_record({Header.LAST_FAILED_AT.value: "2026-01-01T00:05:00+00:00"})
    assert first.id == second.id
    assert first.failure_id != second.failure_id


def test_failed_replay_in_same_second_has_new_id() -> None:
    """The broker's time is in seconds; the number of the replay distinguishes the failures."""
    headers = {"x-death": [x_death_entry("orders", "rejected")]}
    assert make_record(headers, queue="dlq").failure_id != make_record(headers | {Header.REPLAY.value: 1}, queue="dlq").failure_id


def test_record_without_message_id_uses_body_hash() -> None:
    assert make_record(message_id=None).id == make_record(message_id=None).id != make_record(message_id=None, body=b"[]").id


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\0b", "a\ufffdb"),
        ("\ud800", "?"),
        (b"\xff", "\ufffd"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (Decimal("1.5"), 1.5),
        (NOW.replace(tzinfo=None), "2026-01-01T00:00:00+00:00"),
        ([1, None, True, {"a\0": (2,)}], [1, None, True, {"a\ufffd": [2]}]),
        (SimpleNamespace(), "namespace()"),
    ],
)
def test_header_is_converted_to_json(value: Any, expected: Any) -> None:
    assert to_json_value(value) == expected
    json.dumps(to_json_value(value), allow_nan=False).encode()


def test_deeply_nested_header_is_truncated() -> None:
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    value, depth = to_json_value(nested), 0
    while isinstance(value, list):
        (value,), depth = value, depth + 1
    assert depth == MAX_HEADER_DEPTH
    assert isinstance(value, str), "deeper values are kept as text"


STORED_ROW: dict[str, Any] = {
    "dead_queue": "atelier.dead.image",
    "target": "atelier.image",
    "message_id": "m-1",
    "sent_as": "m-1",
    "job_id": "j-1",
    "tenant": "acme",
    "type": "image.v1",
    "content_type": "application/json",
    "content_encoding": "gzip",
    "headers": {Header.ATTEMPT.value: 4, Header.TENANT.value: "acme"},
    "properties": None,
    "replays": 2,
    "body": b"{}",
    "edited": False,
    "edited_type": None,
}
"""As an earlier release stored it, without encoded properties."""


def test_replay_drops_headers_of_failed_delivery() -> None:
    headers = {
        "x-death": [],
        "x-first-death-queue": "q",
        "x-delivery-count": 3,
        "x-acquired-count": 3,
        "CC": ["other"],
        "BCC": ["other"],
        Header.ATTEMPT.value: 4,
        Header.DEADLINE.value: "2020-01-01T00:00:00+00:00",
        Header.FAULT_CODE.value: "c",
        Header.EXCEPTION_STACK.value: "s",
        Header.FIRST_FAILED_AT.value: "t",
        Header.TENANT.value: "acme",
        Header.TRACEPARENT.value: "00-1-2-01",
        "theirs": 1,
    }
    kept = {Header.TENANT.value: "acme", Header.TRACEPARENT.value: "00-1-2-01", "theirs": 1, Header.REPLAY.value: 2}
    row = STORED_ROW | {"headers": headers}
    assert build_replay_message(row).headers == kept
    left_out = {one.name.removeprefix("header ") for one in replay_differences(row) if one.change == "left out"}
    assert left_out == headers.keys() - kept.keys()


def test_replay_is_sent_to_one_queue_without_reply_to() -> None:
    message = build_replay_message(STORED_ROW)
    assert (message.exchange, message.routing_key, message.mandatory, message.reply_to) == ("", "atelier.image", True, None)
    assert (message.message_id, message.job_id, message.type) == ("m-1", "j-1", "image.v1")
    assert message.headers == {Header.TENANT.value: "acme", Header.REPLAY.value: 2}
    assert message.properties is not None
    assert message.properties.text("content_encoding") == "gzip"


def test_letter_of_an_earlier_release_says_that_its_types_are_lost() -> None:
    """A number that no field of the protocol holds is left out; the letter is sent all the same."""
    row = STORED_ROW | {"tenant": None, "headers": {"huge": 2**70, "theirs": 1}}
    assert build_replay_message(row).headers == {"theirs": 1, Header.REPLAY.value: 2}
    assert "earlier release" in replay_differences(row)[0].reason


def test_replay_under_new_id_sets_causation_id() -> None:
    message = build_replay_message(STORED_ROW | {"sent_as": "m-2", "edited": True, "edited_type": "image.v1", "type": "image.v9"})
    assert (message.message_id, message.headers[Header.CAUSATION], message.type) == ("m-2", "m-1", "image.v1")
    assert message.properties is not None
    assert message.properties.text("content_encoding") is None


@pytest.mark.parametrize(
    ("step", "body", "contract"),
    [
        ("image", {"prompt": "a fox"}, "Image"),
        ("orders", {"anything": 1}, None),
        ("ledger", {"kind": "completed", "step": "image", "job_id": "j", "at": "2026-01-01T00:00:00Z", "message_id": "m"}, "Event"),
    ],
)
def test_edited_body_that_matches_contract_is_accepted(step: str, body: dict[str, Any], contract: str | None) -> None:
    assert validate_body(step, body) == contract


@pytest.mark.parametrize(
    ("step", "body", "code"),
    [
        ("image", {}, "invalid-message"),
        ("upload", {"images": 5}, "invalid-message"),
        ("image_generation", {"data": {}}, "invalid-message"),
        ("image_generation", {"prompt_tags": ["a"]}, "invalid-message"),
        ("orders", {"much": "x" * (1 << 20)}, "message-too-large"),
    ],
)
def test_body_that_breaks_its_contract_is_rejected(step: str, body: dict[str, Any], code: str) -> None:
    with pytest.raises(PermanentError) as refused:
        validate_body(step, body)
    assert refused.value.code == code


@pytest.mark.parametrize(("per_second", "expected"), [(None, 200), (0.1, 1), (1, 1), (20, 4), (1e5, 200)])
def test_batch_size_shrinks_with_rate_limit(per_second: float | None, expected: int) -> None:
    assert batch_size(per_second) == expected


def test_fingerprint_of_hostile_stack_takes_milliseconds() -> None:
    started = time.process_time()
    stack_fingerprint('  File "a.py", line 1, in ' + " " * 40_000 + "x")
    stack_fingerprint(" " * 40_000)
    stack_fingerprint('  File "' * 5_000)
    assert time.process_time() - started < 0.5


def test_fingerprint_is_that_of_former_pattern() -> None:
    former = re.compile(r'^ *File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+?) *$', re.MULTILINE)
    numbers = random.Random(18)
    for _ in range(5_000):
        stack = "".join(numbers.choices([' File "', "a/b.py", '", line 7, in ', "call", " ", "  ", "\n"], k=numbers.randint(0, 14)))
        expected = [f"{'/'.join(PurePath(frame['file']).parts[-2:])}:{frame['function']}" for frame in former.finditer(stack)]
        assert stack_fingerprint(stack) == tuple(expected[-8:])


ORIGINAL = encode_properties(
    message_id=short(b"m-1"), correlation_id=short(b"j-1"), headers=table(entry(Header.TENANT.value, b"S" + long(b"acme")))
)
COPY = {Header.ORIGIN_QUEUE.value: "atelier.image", Header.TENANT.value: "acme", Header.ORIGINAL_PROPERTIES.value: bytearray(ORIGINAL)}


@pytest.mark.parametrize(
    ("headers", "ids"),
    [
        ({Header.TENANT.value: "shop"}, {}),
        ({Header.TENANT.value: None}, {}),
        ({Header.ORIGINAL_PROPERTIES.value: bytearray(encode_properties(timestamp=b"\xff" * 8))}, {}),
        ({Header.ORIGINAL_PROPERTIES.value: bytearray(b"\xff\xff")}, {}),
        ({}, {"message_id": "m-2"}),
        ({}, {"correlation_id": "j-2"}),
    ],
    ids=["other tenant", "no tenant", "undecodable", "no properties", "other id", "other job"],
)
def test_carried_properties_are_those_of_the_message_that_carries_them(headers: dict[str, Any], ids: dict[str, str]) -> None:
    own = b"\x00\x00"
    assert make_record(ReceivedHeaders(COPY, own)).properties == ORIGINAL
    assert make_record(ReceivedHeaders(COPY | headers, own), **ids).properties == own


def test_carried_properties_need_a_signature_where_messages_are_signed() -> None:
    message = OutboundMessage("", "atelier.dead.image", b"{}", "m-1", "j-1", "image.v1", dict(COPY))
    routed: dict[str, Any] = {"routing_key": message.routing_key, "reply_to": None}
    signing.sign_with("s" * 32)
    try:
        signed = COPY | signing.signature_headers(message)
        assert make_record(ReceivedHeaders(signed, b"\x00\x00"), **routed).properties == ORIGINAL
        assert make_record(ReceivedHeaders(COPY, b"\x00\x00"), **routed).properties == b"\x00\x00"
    finally:
        signing.sign_with(None)


def test_raw_dead_letter_keeps_the_tenant() -> None:
    """The tenant that the properties in it name, so that its replay acts for the same one."""
    headers = ReceivedHeaders({Header.TENANT.value: "acme"}, ORIGINAL)
    message: Any = SimpleNamespace(headers=headers, body=b"{}", message_id="m-1", correlation_id="j-1")
    outcome = DeadLettered(fault_from_error(PermanentError("c", "m"), "c", "image", 1), "")
    dead_letter = build_raw_dead_letter(message, outcome, name="image", queue="atelier.image")
    record = make_record(ReceivedHeaders(dead_letter.headers, b"\x00\x00"))
    assert (record.tenant, record.properties) == ("acme", ORIGINAL)
