"""`decode_command`: every check of a message, by its fault code."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bus.actor import Actor, Handler, Resources
from bus.delivery import Delivery
from bus.errors import PermanentError
from bus.worker.decoding import decode_command
from contracts.wire import Command, Result

MAX_BYTES = 1000


class Echo(Command):
    text: str
    count: int = 1


@asynccontextmanager
async def open_nothing(resources: Resources) -> AsyncIterator[Handler]:
    raise NotImplementedError
    yield


ACTOR = Actor(step="echo", command=Echo, result=Result, open=open_nothing, timeout_seconds=5, prefetch=1)


def decode(body: bytes, message_type: str | None = None) -> Any:
    return decode_command(Delivery(body=body, queue="atelier.echo", message_id="m", job_id="j", type=message_type), ACTOR, MAX_BYTES)


@pytest.mark.parametrize("message_type", [None, "", "echo.v1", "other.v7", "echo", "anything"])
def test_valid_command_is_decoded_whatever_foreign_type_it_has(message_type: str | None) -> None:
    assert decode(b'{"text": "hello", "unknown": true}', message_type).text == "hello"


def with_slip(**slip: Any) -> bytes:
    return json.dumps({"text": "x", "slip": slip}).encode()


@pytest.mark.parametrize(
    ("body", "message_type", "code", "message"),
    [
        (b"[" * (MAX_BYTES + 1), None, "message-too-large", "1001 bytes, the limit is 1000"),
        (b'{"text": "x"}', "echo.v2", "unknown-version", "echo.v1"),
        (b"{", None, "invalid-json", "body: "),
        (b"", None, "invalid-json", "body: "),
        (b"\xff", None, "invalid-json", "body: "),
        (b"[" * MAX_BYTES, None, "invalid-json", "body: "),
        (b"[]", None, "invalid-message", "body: "),
        (b"{}", None, "invalid-message", "text: Field required"),
        (b'{"text": 5, "count": "many"}', None, "invalid-message", "; count: "),
        (with_slip(itinerary=[{"step": "nowhere"}]), None, "unknown-step", "'nowhere'"),
        (with_slip(again={"stops": [{"step": "nowhere"}]}), None, "unknown-step", "'nowhere'"),
        (with_slip(on_failure={"step": "nowhere"}), None, "unknown-step", "'nowhere'"),
    ],
)
def test_invalid_command_is_refused_with_its_code(body: bytes, message_type: str | None, code: str, message: str) -> None:
    with pytest.raises(PermanentError) as refused:
        decode(body, message_type)
    assert refused.value.code == code
    assert message in str(refused.value)


def test_body_of_the_largest_size_is_decoded() -> None:
    body = b'{"text": "' + b"x" * (MAX_BYTES - 12) + b'"}'
    assert len(body) == MAX_BYTES
    assert len(decode(body).text) == MAX_BYTES - 12


def test_error_names_fields_without_quoting_their_values() -> None:
    """A value may be somebody's prompt."""
    with pytest.raises(PermanentError) as refused:
        decode(b'{"text": ["a secret prompt"]}')
    assert str(refused.value).startswith("text: ")
    assert "secret" not in str(refused.value)


def test_known_itinerary_is_accepted() -> None:
    assert decode(with_slip(itinerary=[{"step": "watermark"}, {"step": "upload"}])).slip.itinerary[1].step == "upload"
