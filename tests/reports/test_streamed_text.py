"""Public reports of lost text: line separators inside streamed JSON, characters that are cut in two, NUL.

What a model server sends arrives whole, or with U+FFFD where half a character was all there was. What a client sends is handled in the same
way on every route and on the bus: half a character and NUL become U+FFFD.
"""

import json
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import Request

from actors.adapters.image_generation import translate
from actors.engines.language.requests import GenerationRequest, VlmRequest
from actors.engines.remote.openai_text import OpenAiTextEngine
from actors.engines.remote.openai_vlm import OpenAiVlm
from actors.settings import OrderSettings, WebhookSettings
from bus.actor import Context
from bus.json_text import storable_json
from bus.settings import BusSettings
from bus.storage.claim_store import ClaimStore
from contracts.event import Event
from gateway.console.form_body import read_urlencoded_form
from gateway.jobs.event_stream import format_event
from gateway.sse import json_data
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor
from tests.support.raw_openai_server import DONE, RawAnswer, chunk, completion, event, open_raw_server, stream
from tests.support.text_product import text_product
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway, gateway  # noqa: F401 - a fixture
from tests.unit.gateway.text.test_uploads import FakeStore

pytestmark = pytest.mark.timeout(60)
SEPARATORS = {"LINE SEPARATOR": "\u2028", "PARAGRAPH SEPARATOR": "\u2029", "NEXT LINE": "\x85"}
HALF, OTHER_HALF = b"\\ud83d", b"\\ude00"
END = event(chunk(finish="stop"))


def piece(escaped: bytes) -> bytes:
    """An event whose text is given as the characters of JSON."""
    return b'data: {"choices": [{"index": 0, "delta": {"content": "' + escaped + b'"}, "finish_reason": null}]}\n\n'


@asynccontextmanager
async def engines(answer: RawAnswer) -> Any:
    async with open_raw_server(lambda _: answer) as server, httpx.AsyncClient(base_url=f"{server.url}/") as http:
        yield OpenAiTextEngine(http, "m", 0.2), OpenAiVlm(http, "m")


async def streamed(answer: RawAnswer, **options: Any) -> str:
    request = GenerationRequest([{"role": "user", "content": "hi"}], 64, 0, 1, **({"stream": True} | options))
    async with engines(answer) as (text, _):
        return "".join([part.text async for part in text.generate(request, None)])


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
@pytest.mark.parametrize("cut", [1, 2, 3, 1000])
async def test_separator_inside_json_ends_no_line(separator: str, cut: int) -> None:
    """florimondmanca/httpx-sse #34, langgenius/dify PR #39008, Soju06/codex-lb #1010, modelscope/evalscope PR #1642."""
    data = event(chunk(f"first{separator}second")) + END + DONE
    answer = stream(*(data[start : start + cut] for start in range(0, len(data), cut)))
    assert await streamed(answer) == f"first{separator}second"


async def test_separators_beside_line_ends_of_all_kinds() -> None:
    """mattn/tensai PR #110 and others: form feeds and the like are no line ends either."""
    text = "a\x0b\x0c\x1c\x1d\x1e\u2028b"
    for line_end in (b"\n", b"\r\n", b"\r"):
        answer = stream((event(chunk(text)) + END + DONE).replace(b"\n", line_end))
        assert await streamed(answer) == text


@pytest.mark.parametrize("text", ["따뜻한 한 그릇 😀", "你好，世界", "нет", "👩‍👩‍👧‍👦"])
@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_character_cut_by_the_network_arrives_whole(text: str, cut: int) -> None:
    """api7/aisix #111, librefang/librefang #3448, agentclientprotocol/python-sdk PR #135: chunks of the network cut UTF-8 anywhere."""
    data = event(chunk(text)) + END + DONE
    assert await streamed(stream(*(data[start : start + cut] for start in range(0, len(data), cut)))) == text


CUT_CHARACTERS = [
    pytest.param([HALF, OTHER_HALF], "😀", id="Kohaku-Lab/KohakuTerrarium PR #48: its halves in two events"),
    pytest.param([HALF, b"", OTHER_HALF], "😀", id="an event without text between the halves"),
    pytest.param([b"a" + HALF, OTHER_HALF + b"b"], "a😀b", id="with other text around"),
    pytest.param([HALF, OTHER_HALF + HALF, OTHER_HALF], "😀😀", id="two characters in three events"),
    pytest.param([HALF + OTHER_HALF], "😀", id="both halves in one event"),
    pytest.param([HALF, b" there"], "\ufffd there", id="elie222/rakazo #416: a first half alone"),
    pytest.param([OTHER_HALF, b" there"], "\ufffd there", id="a second half alone"),
    pytest.param([OTHER_HALF + HALF], "\ufffd\ufffd", id="the halves in the wrong order"),
    pytest.param([b"a", HALF], "a\ufffd", id="elizaOS/eliza #30904: the answer ends with half a character"),
]


@pytest.mark.parametrize(("pieces", "expected"), CUT_CHARACTERS)
async def test_halves_of_a_character_are_joined_or_replaced(pieces: list[bytes], expected: str) -> None:
    """Also before a stop sequence, which is looked for in whole characters."""
    answer = stream(*map(piece, pieces), END, DONE)
    assert await streamed(answer) == expected
    stopped = stream(*map(piece, pieces), event(chunk("###and more")), END, DONE)
    assert await streamed(stopped, stop=("###",)) == expected


@pytest.mark.parametrize(("pieces", "expected"), CUT_CHARACTERS)
async def test_whole_answer_with_half_a_character(pieces: list[bytes], expected: str) -> None:
    """Of both engines."""
    body = json.dumps(completion("TEXT").body).encode().replace(b"TEXT", b"".join(pieces))
    assert await streamed(RawAnswer(200, body), stream=False) == expected
    async with engines(RawAnswer(200, body)) as (_, vlm):
        assert (await vlm.generate(VlmRequest("?"))).text == expected.strip()


def test_own_events_have_no_separator_that_clients_take_for_a_line_end() -> None:
    """Clients that split with Python's splitlines, such as httpx's iter_lines, read our streams whole."""
    text = "".join(SEPARATORS.values())
    happened = Event.model_validate(
        {"job_id": "j", "step": "text", "kind": "completed", "at": "2026-01-01T00:00:00Z", "message_id": "m", "result": {"response": text}}
    )
    for event_text in (json_data({"result": {"response": text}}), format_event(happened)):
        (line,) = [line for line in event_text.splitlines() if line.startswith("data: ")]
        assert json.loads(line.removeprefix("data: "))["result"]["response"] == text


async def test_separators_and_halves_reach_the_client_and_the_conversation(
    monkeypatch: pytest.MonkeyPatch, start_worker: StartWorker, bus_settings: BusSettings, store_folder: Path, purged_queues: None
) -> None:
    """The whole way, read by a client that splits lines in the wrong way; NUL and halves are in Postgres as U+FFFD."""
    text, kept = "a\u2028b\x85c", "a\u2028b\x85c\ufffd\ufffd"

    def respond(request: dict[str, Any]) -> RawAnswer:
        if request.get("stream"):
            return stream(event(chunk(text)), piece(HALF), event(chunk("\0")), END, DONE)
        return completion(f"{text}\ud83d\0")

    async with text_product(respond, monkeypatch, start_worker, bus_settings, store_folder) as product:
        whole = await product.chat()
        assert whole.json()["choices"][0]["message"]["content"].replace("\0", "\ufffd") == kept
        lines = [line async for line in (await product.chat(stream=True)).aiter_lines()]
        deltas = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        assert "".join(delta["choices"][0]["delta"].get("content", "") for delta in deltas).replace("\0", "\ufffd") == kept
        first = await product.http.post("/generate", content=b'{"message": "half \\ud83d and \\u0000"}', headers=JSON)
        assert first.status_code == 200
        conversation = (await product.http.get(f"/conversations/{first.json()['conversation_id']}")).json()
        assert [message["content"] for message in conversation["messages"]] == ["half \ufffd and \ufffd", kept]
        assert first.json()["conversation_id"] in (await product.http.get("/conversations")).text
        assert product.server.requests[-1]["messages"][-1]["content"] == "half \ufffd and \ufffd"


JSON = {"Content-Type": "application/json"}
SUSPECT = b"half \\ud83d, other \\ude00, nul \\u0000, whole \\ud83d\\ude00, escaped \\\\ud83d"
REPLACED = "half \ufffd, other \ufffd, nul \ufffd, whole 😀, escaped \\ud83d"
BODIES: dict[str, bytes] = {
    "/generate": b'{"message": "TEXT"}',
    "/v1/chat/completions": b'{"model": "text", "messages": [{"role": "user", "content": "TEXT"}]}',
    "/predict": b'{"instances": [{"prompt": "TEXT"}]}',
    "/v1/images/generations": b'{"prompt": "TEXT"}',
    "/jobs": b'{"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "TEXT"}}]}',
}
READY = {"consult.ready": {"model": "m"}, "consult": {"prediction": "x"}, "text": None, "image": None}


def all_commands(fake: FakeGateway) -> str:
    return "".join(json.dumps(json.loads(message.body), ensure_ascii=False) for message in fake.publisher.messages)


@pytest.mark.parametrize("path", BODIES)
async def test_half_a_character_in_a_request_is_replaced(gateway: OpenFakeGateway, path: str) -> None:  # noqa: F811
    """anomalyco/opencode PR #17758, MadSkittles/Router-Maestro PR #37: JavaScript sends lone halves. Nothing is refused."""
    fake = gateway(READY, store=cast("ClaimStore", FakeStore()), request_seconds=1)
    response = await fake.http.post(path, content=BODIES[path].replace(b"TEXT", SUSPECT), headers=JSON | {"X-Request-Timeout": "0.3"})
    assert response.status_code not in {400, 422}, response.text
    assert json.dumps(REPLACED, ensure_ascii=False)[1:-1] in all_commands(fake)


async def test_nul_in_a_form_is_replaced(gateway: OpenFakeGateway) -> None:  # noqa: F811
    """Also bytes that are no UTF-8: percent-encoded ones, and those of a form in parts."""
    fake = gateway(READY, request_seconds=1)
    headers = {"X-Request-Timeout": "0.2"}
    urlencoded = headers | {"Content-Type": "application/x-www-form-urlencoded"}
    await fake.http.post("/multimodal", content=b"message=first%00%ED%A0%BD", headers=urlencoded)
    parts = headers | {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="message"\r\n\r\nsecond\0\xed\xa0\xbd\r\n--b--\r\n'
    second = await fake.http.post("/multimodal", content=part, headers=parts)
    assert second.status_code == 503, second.text  # nobody answers the command
    assert [command["message"].rstrip("\ufffdí\xa0½") for command in fake.publisher.commands("text")] == ["first", "second"]


async def test_form_of_the_console_has_neither() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"message=a%00b%ED%A0%BD", "more_body": False}

    form = await read_urlencoded_form(Request({"type": "http", "headers": [], "method": "POST"}, receive))
    assert form["message"].replace("\ufffd", "?") == "a?b???"


async def test_every_route_treats_half_a_character_alike(gateway: OpenFakeGateway) -> None:  # noqa: F811
    """Whatever routes there are: a body with half a character or NUL has the status of the same body without, and no internal error."""
    fake = gateway(READY, request_seconds=1, question_seconds=0.05)
    statuses: dict[str, set[int]] = {}
    for path in [path for path, methods in fake.app.openapi()["paths"].items() if {"post", "put", "patch"} & methods.keys()]:
        for text in (b"plain", SUSPECT):
            body = BODIES.get(path, b'{"TEXT": "TEXT", "selection": {"step": "TEXT"}}').replace(b"TEXT", text)
            response = await fake.http.post(
                path.replace("{", "").replace("}", ""), content=body, headers=JSON | {"X-Request-Timeout": "0.1"}
            )
            statuses.setdefault(path, set()).add(response.status_code)
    assert len(statuses) >= 10
    assert {path: found for path, found in statuses.items() if len(found) > 1} == {}


async def test_command_on_the_bus_with_half_a_character(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """HKUDS/nanobot PR #4952: every entrance is sanitized, not the first one alone."""

    async def echo(command: Echo, context: Context) -> Echoed:
        return Echoed(text=command.text)

    actor = echo_actor(echo)
    async with start_worker(actor):
        await broker_client.publish(actor.step, b'{"text": "' + SUSPECT + b'"}', reply_to=broker_client.reply_queue)
        assert await broker_client.next_reply() == (f"{actor.step}.done.v1", {"text": REPLACED})


def test_order_of_a_foreign_backend_with_half_a_character() -> None:
    body = {"type": "image_generation", "data": {"generation_id": 7, "style_id": 1, "prompt": "TEXT", "parameters": {}}}
    order = translate(json.dumps(body).encode().replace(b"TEXT", SUSPECT), WebhookSettings(), OrderSettings())
    assert order.body["prompt"] == REPLACED


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (rb'"\u0000"', "\ufffd"),
        (rb'"\\u0000"', "\\u0000"),
        (rb'"\\\u0000"', "\\\ufffd"),
        (rb'"\uD83D\uDE00"', "😀"),
        (rb'"\uD83D\uD83D\uDE00"', "\ufffd😀"),
        (rb'"\udE00\ud83d"', "\ufffd\ufffd"),
        (rb'"\ud83d\n"', "\ufffd\n"),
        (rb'"\ud83d\\ude00"', "\ufffd\\ude00"),
        ('"\u00e9 \\u00e9"'.encode(), "é é"),
    ],
)
def test_escapes_are_replaced_and_nothing_else(sent: bytes, expected: str) -> None:
    assert json.loads(storable_json(sent)) == expected


def test_replacement_takes_linear_time() -> None:
    """A megabyte of halves, of backslashes or of whole characters."""
    started = time.process_time()
    for unit in (rb"\ud83d", b"\\\\", rb"\ud83d\ude00", rb"\u0000", rb"\ud8"):
        storable_json(b'"' + unit * ((1 << 20) // len(unit)) + rb'\u0000"')
    assert time.process_time() - started < 10, "quadratic time would be minutes"


def test_ten_megabytes_of_backslashes_are_one_replacement() -> None:
    """Not a call for each of them, which took seconds while the gateway served nobody else."""
    body = b'"' + b"\\\\" * 5_000_000 + rb'\ud800"'
    started = time.process_time()
    assert storable_json(body).endswith(b"\\\\" + rb'\ufffd"')
    assert time.process_time() - started < 1.5
