"""Failures that servers compatible with OpenAI's API report in the middle of an answer, and answers without an end.

The servers are real sockets; each case says what comes in.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from actors.engines.language.requests import GenerationRequest, VlmRequest
from actors.engines.remote import event_stream, openai_client
from actors.engines.remote.event_stream import EventReader
from actors.engines.remote.openai_text import OpenAiTextEngine
from bus.errors import PermanentError, TemporaryError
from tests.support.raw_openai_server import RawAnswer, chunk, completion, event, stream
from tests.support.server_lab import lab

pytestmark = pytest.mark.timeout(60)
HELLO, END, DONE = event(chunk("hello")), event(chunk(finish="stop")), b"data: [DONE]\n\n"
AWAY: dict[str, Any] = {"code": 502, "message": "Provider disconnected"}


def beside(error: dict[str, Any], *, finish: Any = None, inside: bool = False) -> dict[str, Any]:
    """An answer with half of its text and an error beside its choices, or `inside` the choice."""
    choice = {"index": 0, "delta": {"content": ""}, "message": {"content": "half of"}, "finish_reason": finish}
    return {"choices": [choice | {"error": error}]} if inside else {"error": error, "choices": [choice]}


FAILED = [beside(AWAY), beside(AWAY, finish="error"), beside(AWAY, inside=True), beside(AWAY, finish="stop", inside=True)]


@pytest.mark.parametrize("body", FAILED, ids=["no finish reason", "finish reason error", "in the choice", "in a finished choice"])
async def test_failure_beside_choices_is_no_answer(body: dict[str, Any]) -> None:
    """OpenRouter reports that a provider failed beside what there is of the answer: streamed, whole, and for the vision engine."""
    async with lab(lambda sent: stream(HELLO, event(body), DONE) if sent.get("stream") else RawAnswer(200, body), patience=0.1) as rig:
        for streamed in (True, False):
            with pytest.raises(TemporaryError, match="Provider disconnected"):
                await rig.text(stream=streamed)
        with pytest.raises(TemporaryError, match="Provider disconnected"):
            await rig.vlm.generate(VlmRequest("?"))


@pytest.mark.parametrize("error", [None, {}, "", {"code": None, "message": ""}])
async def test_error_that_says_nothing_is_none(error: Any) -> None:
    body = completion().body | {"error": error}
    async with lab(
        lambda sent: stream(event(chunk("hello") | {"error": error}), END) if sent.get("stream") else RawAnswer(200, body)
    ) as rig:
        assert [await rig.text(stream=streamed) for streamed in (True, False)] == ["hello", "hello"]


GEMINI = [{"error": {"code": 400, "message": "API key not valid"}}]


@pytest.mark.parametrize(
    "answer", [RawAnswer(200, GEMINI), stream(b"data: " + json.dumps(GEMINI).encode() + b"\n\n")], ids=["raw", "event"]
)
async def test_error_in_a_list_is_read(answer: RawAnswer) -> None:
    """Gemini's form, with status 200."""
    async with lab(lambda _: answer, patience=0.1) as rig:
        with pytest.raises(PermanentError, match="API key not valid"):
            await rig.text(stream=answer.pieces is not None)


@pytest.mark.parametrize("data", [b"overloaded", b'"overloaded"', b'{"message": "overloaded"}'])
async def test_event_of_the_kind_error_is_a_failure(data: bytes) -> None:
    """Plain text, too; its words are in the fault."""
    async with lab(lambda _: stream(HELLO, b"event: error\ndata: " + data + b"\n\n", END, DONE), patience=0.1) as rig:
        with pytest.raises(TemporaryError, match="overloaded"):
            await rig.text(stream=True)


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(b"data: null\n\n", id="null"),
        pytest.param(b"event: status\n" + event({"type": "status", "message": "queued"}), id="a status"),
        pytest.param(event({"message": "position 3"}), id="a message alone"),
        pytest.param(b"event: ping\n\n", id="a kind without data"),
    ],
)
async def test_event_about_the_progress_is_no_answer_and_no_failure(between: bytes) -> None:
    """Keep-alives and queues, before, in the middle of and after an answer."""
    async with lab(lambda _: stream(between, HELLO, between, END, between, DONE)) as rig:
        assert await rig.text(stream=True) == "hello"


async def test_pretty_printed_event_takes_linear_time() -> None:
    """An object on many lines is parsed once, when its brackets are closed, and read while other tasks run."""

    async def data() -> AsyncIterator[bytes]:
        yield b'data: {"a": [\n'
        for number in range(1000):
            yield b'data: %b{"x": "}{[%b"}\n' % (b"," if number else b"", b"y" * 10_000)
        yield b"data: ]}\n"

    started = time.process_time()
    (found,) = [item async for item in EventReader().events(data())]
    assert len(found["a"]) == 1000
    assert time.process_time() - started < 5  # a hundred times less than with a parse for each line


@pytest.mark.parametrize("line", [b"data: y\n", b"data: {}}\n", b'data: "}{\n'])
async def test_size_of_an_event_is_bounded(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are short, and together without an end."""
    monkeypatch.setattr(event_stream, "MAX_EVENT_CHARS", 1000)
    async with lab(lambda _: stream(b"data: {\n", *(line,) * 1500), patience=0.1) as rig:
        with pytest.raises(TemporaryError, match="more than 2000 lines or 1000 characters"):
            await rig.text(stream=True)


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_error_answer_that_breaks_off_is_retried(streamed: bool) -> None:
    """A busy proxy that closes the connection in the middle of its 503."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        head = await reader.readuntil(b"\r\n\r\n")
        count += b"chat/completions" in head
        writer.write(
            b"HTTP/1.1 503 X\r\nContent-Length: 1000\r\n\r\nbusy" if b"chat" in head else b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/"
    request = GenerationRequest([{"role": "user", "content": "hi"}], max_tokens=9, temperature=1, top_p=1, stream=streamed)
    async with server, httpx.AsyncClient(base_url=address) as http:
        with pytest.raises(TemporaryError):
            async for _ in OpenAiTextEngine(http, "m", 0.6).generate(request, None):
                pass
    assert count > 1


async def test_size_of_an_answer_without_a_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is too large is not kept, and of an error its beginning alone."""
    monkeypatch.setattr(openai_client, "MAX_ANSWER_BYTES", 1000)
    monkeypatch.setattr(openai_client, "MAX_ERROR_BYTES", 100)
    async with lab(lambda _: completion("x" * 2000), patience=0.1) as rig:
        with pytest.raises(TemporaryError, match="more than 1000 bytes"):
            await rig.text()
        with pytest.raises(TemporaryError, match="more than 1000 bytes"):
            await rig.vlm.generate(VlmRequest("?"))
        rig.server.respond = lambda _: RawAnswer(403, b"begins " + b"x" * 1000)
        for streamed in (True, False):
            with pytest.raises(PermanentError, match="begins") as raised:
                await rig.text(stream=streamed)
            assert len(str(raised.value)) < 200
