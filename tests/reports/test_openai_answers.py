"""Public reports of the answers of servers that are compatible with OpenAI's API: forms of content, reasons to finish, streams, bodies.

Each case names its report; the servers are real sockets.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from actors.engines.language.requests import VlmRequest
from bus.errors import PermanentError, TemporaryError
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker, wait_until
from tests.support.raw_openai_server import RawAnswer, chunk, completion, error, event, events, stream
from tests.support.server_lab import lab
from tests.support.text_product import text_product

pytestmark = pytest.mark.timeout(60)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
BLOCKS = [{"type": "thinking", "thinking": [{"type": "text", "text": "let me think"}]}, {"type": "text", "text": "They meet."}]
CONTENTS = [
    pytest.param(BLOCKS, {}, "They meet.", id="NousResearch/hermes-agent PR #4748, simonw/llm-mistral PR #39: a list with thinking"),
    pytest.param([{"type": "output_text", "text": "a"}, {"type": "text", "text": {"value": "b"}}], {}, "ab", id="other text parts"),
    pytest.param({"type": "text", "text": "one part"}, {}, "one part", id="BerriAI/litellm #16272: a single part"),
    pytest.param(["a", "b"], {}, "ab", id="a list of texts"),
    pytest.param(None, {"reasoning_content": "hm"}, "", id="null beside reasoning_content"),
    pytest.param("x", {"reasoning": "hm", "annotations": [], "audio": None}, "x", id="OpenRouter's reasoning"),
    pytest.param(None, {"refusal": "I will not."}, "I will not.", id="a refusal"),
    pytest.param([{"type": "refusal", "refusal": "No."}], {}, "No.", id="a refusal as a part"),
    pytest.param("", {"tool_calls": [{"id": "1", "type": "function"}], "function_call": None}, "", id="a tool call nobody asked for"),
    pytest.param(7, {}, "", id="a number"),
]


@pytest.mark.parametrize(("content", "message", "expected"), CONTENTS)
async def test_every_form_of_content_is_read(content: Any, message: dict[str, Any], expected: str) -> None:
    """Whole, streamed, and by the vision engine; no list is shown as Python writes it."""
    delta = {name: value for name, value in message.items() if name != "tool_calls"}
    async with lab(lambda _: completion(content, **message)) as rig:
        assert await rig.text() == expected
        if expected:
            assert (await rig.vlm.generate(VlmRequest("?"))).text == expected
        rig.server.respond = lambda _: events(chunk(role="assistant"), chunk(content, **delta), chunk(finish="stop"))
        assert await rig.text(stream=True) == expected


REASONS = [
    *[pytest.param(reason, "stop", id=f"{reason}") for reason in ("stop", "tool_calls", "function_call")],
    pytest.param(None, "stop", id="null, and [DONE]"),
    pytest.param("eos", "stop", id="openai/openai-dotnet PR #267: eos"),
    pytest.param("end", "stop", id="earendil-works/pi PR #2116: end"),
    pytest.param("end_turn", "stop", id="end_turn"),
    pytest.param("length", "length", id="length"),
    pytest.param("max_tokens", "length", id="max_tokens"),
    pytest.param("MAX_TOKENS", "length", id="MAX_TOKENS of Gemini"),
    pytest.param("abort", "length", id="earendil-works/pi PR #1509, sgl-project/sglang PR #6693: abort"),
    pytest.param("insufficient_system_resource", "length", id="DeepSeek"),
    pytest.param("content_filter", "content_filter", id="BerriAI/litellm #8953"),
    pytest.param("sensitive", "content_filter", id="earendil-works/pi PR #1509: sensitive"),
    pytest.param("SAFETY", "content_filter", id="SAFETY of Gemini"),
]


@pytest.mark.parametrize(("reason", "expected"), REASONS)
async def test_every_finish_reason_is_read(reason: str | None, expected: str) -> None:
    async with lab(lambda request: events(chunk("a"), chunk(finish=reason)) if request.get("stream") else completion("a", reason)) as rig:
        for streamed in (False, True):
            chunks = await rig.chunks(stream=streamed)
            assert ("".join(part.text for part in chunks), chunks[-1].finish_reason) == ("a", expected)
        assert (await rig.vlm.generate(VlmRequest("?"))).finish_reason == expected


@pytest.mark.parametrize("reason", ["error", "network_error"])
async def test_answer_that_ends_with_an_error_is_a_failure(reason: str) -> None:
    """OpenRouter and z.ai: the server failed in the middle of an answer; what there is of it is not the answer."""
    async with lab(lambda _: completion("half", reason), patience=0.1) as text:
        with pytest.raises(TemporaryError):
            await text.text()


async def test_filtered_answer_of_the_vision_engine_is_a_fault() -> None:
    """BerriAI/litellm #40857: nothing is left of the answer; a verdict is not asked for again and again."""
    async with lab(lambda _: completion("", "content_filter")) as rig:
        for schema in (None, json.dumps(SCHEMA)):
            with pytest.raises(PermanentError) as raised:
                await rig.vlm.generate(VlmRequest("?", (), 8, 1.0, schema))
            assert raised.value.code == "content-filtered"


async def test_filtered_prompt_is_a_fault_of_its_own() -> None:
    """Azure answers 400 `content_filter` to a prompt."""
    message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    async with lab(lambda _: error(message, code="content_filter", param="prompt")) as text:
        with pytest.raises(PermanentError) as raised:
            await text.text()
    assert raised.value.code == "content-filtered"


HELLO, END = event(chunk("hello")), event(chunk(finish="stop"))
DONE = b"data: [DONE]\n\n"
USAGE = event({"choices": [], "usage": {"prompt_tokens": "3", "completion_tokens": "2"}})
STREAMS = [
    pytest.param(stream(HELLO, END, DONE), id="as the standard has it"),
    pytest.param(stream(HELLO, END), id="lidge-jun/opencodex #1170: no [DONE]"),
    pytest.param(stream(HELLO, DONE), id="[DONE], and no finish reason"),
    pytest.param(stream(event({"id": "", "choices": [], "prompt_filter_results": []}), HELLO, END, DONE), id="pydantic/logfire #64: Azure"),
    pytest.param(stream(HELLO, END, USAGE, DONE), id="datawhalechina/hello-agents #425: usage in a chunk without choices"),
    pytest.param(stream(HELLO, END, b'data: {"choices": null}\n\n', DONE), id="choices is null"),
    pytest.param(stream(HELLO.replace(b"data: ", b"data:"), END.replace(b"data: ", b"data:")), id="openai/openai-python #498: no blank"),
    pytest.param(stream(*(part.replace(b"\n", b"\r\n") for part in (HELLO, END, DONE))), id="line ends of Windows"),
    pytest.param(stream(*(part.replace(b"\n", b"\r") for part in (HELLO, END, DONE))), id="carriage returns alone"),
    pytest.param(stream(*(bytes([byte]) for byte in HELLO + END + DONE)), id="byte by byte"),
    pytest.param(stream(b": OPENROUTER PROCESSING\n\n", HELLO, b":\n\n", END, DONE), id="OpenRouter's comments"),
    pytest.param(stream(b"event: ping\ndata: \n\n", HELLO, b"id: 1\nretry: 10\n" + END, DONE), id="pings, ids and retries"),
    pytest.param(stream(b"\xef\xbb\xbf" + HELLO, END, DONE), id="a byte order mark"),
    pytest.param(stream(HELLO.rstrip() + b"\n", END.rstrip() + b"\n", DONE), id="no blank line between events"),
    pytest.param(stream(HELLO, END.rstrip()), id="no line end at the end"),
    pytest.param(
        stream(b"data: " + json.dumps(chunk("hello"), indent=1).encode().replace(b"\n", b"\ndata: ") + b"\n\n", END),
        id="JSON on several lines",
    ),
    pytest.param(stream(HELLO, END, DONE, headers={"Content-Type": "application/json"}), id="named application/json"),
    pytest.param(stream(HELLO, END, DONE, headers={"Content-Type": "text/plain; charset=iso-8859-1"}), id="named text/plain in latin-1"),
    pytest.param(completion(), id="a whole answer in place of a stream"),
    pytest.param(RawAnswer(200, json.dumps(completion().body, indent=2).encode()), id="a whole answer on several lines"),
    pytest.param(stream(event(chunk("hello")), event(completion("hello").body), DONE), id="MiniMax: the whole message at the end"),
    pytest.param(
        stream(event({"choices": [{"delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]})),
        id="no index, all in one",
    ),
    pytest.param(stream(event({"error": None} | chunk("hello")), END, DONE), id="`error: null` in each event"),
    pytest.param(
        stream(event(chunk("hello") | {"choices": [*chunk("hello")["choices"], {"index": 1, "delta": {"content": "other"}}]}), END),
        id="a second choice",
    ),
]


@pytest.mark.parametrize("answer", STREAMS)
async def test_streams_of_all_kinds_are_read(answer: RawAnswer) -> None:
    async with lab(lambda _: answer) as text:
        chunks = await text.chunks(stream=True)
    assert "".join(part.text for part in chunks) == "hello"
    assert (chunks[-1].finish_reason, chunks[-1].completion_tokens in {1, 2}) == ("stop", True)


BROKEN_STREAMS = [
    pytest.param(stream(HELLO), id="the stream ends in the middle"),
    pytest.param(stream(HELLO, event({"error": {"message": "CUDA error", "code": 500}})), id="an error in the middle"),
    pytest.param(stream(event({"error": "overloaded"})), id="an error that is a text"),
    pytest.param(stream(b'event: error\ndata: {"type": "error", "error": {"message": "overloaded"}}\n\n'), id="an event of errors"),
    pytest.param(stream(b'{"error": {"message": "no", "code": 503}}\n'), id="an error without data:"),
    pytest.param(
        RawAnswer(200, b"<!DOCTYPE html>\n<html>\n<body>Sign in</body></html>", {"Content-Type": "text/html"}), id="a page of HTML"
    ),
    pytest.param(RawAnswer(200, b""), id="nothing"),
]


@pytest.mark.parametrize("answer", BROKEN_STREAMS)
async def test_broken_stream_is_a_failure_of_the_server(answer: RawAnswer) -> None:
    """Never an answer that looks complete."""
    async with lab(lambda _: answer, patience=0.1) as text:
        with pytest.raises(TemporaryError) as raised:
            await text.text(stream=True)
    assert raised.value.code == "server-failed"


async def test_page_of_html_names_the_cure() -> None:
    async with lab(lambda _: RawAnswer(200, b"<html>Sign in</html>"), patience=0.1) as text:
        with pytest.raises(TemporaryError, match="does the address of the server end with /v1"):
            await text.text()


BODY = json.dumps(completion("hé").body, ensure_ascii=False)
BODIES = [
    pytest.param(RawAnswer(200, gzip.compress(BODY.encode()), {"Content-Encoding": "gzip"}), id="gzip"),
    pytest.param(RawAnswer(200, b"\xef\xbb\xbf" + BODY.encode()), id="a byte order mark"),
    pytest.param(RawAnswer(200, BODY.encode("utf-16")), id="UTF-16"),
    pytest.param(RawAnswer(200, BODY.encode("latin-1"), {"Content-Type": "application/json; charset=iso-8859-1"}), id="latin-1, as named"),
    pytest.param(RawAnswer(200, b"\r\n  " + BODY.encode()), id="openai/openai-python: blank lines before a slow answer"),
    pytest.param(RawAnswer(200, BODY.replace(": 2,", ': "2",').encode()), id="a number as a text"),
    pytest.param(RawAnswer(200, BODY.replace(": 2,", ": 2.0,").encode()), id="a number with a point"),
    pytest.param(RawAnswer(200, BODY.replace('"usage"', '"error": null, "usage"').encode()), id="`error: null` beside an answer"),
    pytest.param(RawAnswer(200, BODY.replace('"index": 0, ', "").encode()), id="no index"),
]


@pytest.mark.parametrize("answer", BODIES)
async def test_whole_answers_of_all_kinds_are_read(answer: RawAnswer) -> None:
    async with lab(lambda _: answer) as rig:
        (last,) = await rig.chunks()
        assert (last.text, last.completion_tokens) == ("hé", 2)
        assert (await rig.vlm.generate(VlmRequest("?"))).text == "hé"


async def test_error_with_status_200_is_an_error() -> None:
    """OpenRouter answers 200 with an error in it; its code decides whether the request is repeated."""
    async with lab(lambda _: RawAnswer(200, {"error": {"message": "Provider returned error", "code": 502}}), patience=0.1) as text:
        with pytest.raises(TemporaryError, match="Provider returned error"):
            await text.text()
        text.server.respond = lambda _: RawAnswer(200, {"error": {"message": "no such model", "code": 404}})
        with pytest.raises(PermanentError, match="no such model"):
            await text.text()


@pytest.mark.parametrize("value", ["0.05", "Thu, 01 Jan 2015 00:00:00 GMT", "soon", "nan", "-3"])
async def test_retry_after_in_every_form(value: str) -> None:
    """RFC 9110 allows a date; some servers send fractions. A busy server is asked again within the time that is left."""
    answers = iter([RawAnswer(429, {"error": {"message": "busy"}}, {"Retry-After": value}), completion()])
    async with lab(lambda _: next(answers)) as text:
        assert await text.text() == "hello"


async def test_error_without_an_error_member_is_reported_with_its_words() -> None:
    """XpressAI/xaibo PR #36, runpod-workers/worker-vllm #57: 200, no choices, and the cause in another member."""
    async with lab(lambda _: RawAnswer(200, {"code": "rate_limit_daily", "message": "the limit of the day"}), patience=0.1) as text:
        with pytest.raises(TemporaryError, match="the limit of the day"):
            await text.text()
        text.server.respond = lambda _: RawAnswer(200, {"code": 404, "message": "The model does not exist.", "object": "error"})
        with pytest.raises(PermanentError, match="does not exist"):
            await text.text()


async def test_outcome_of_a_filter_and_what_was_left_out_reach_the_client(
    monkeypatch: pytest.MonkeyPatch, start_worker: StartWorker, bus_settings: BusSettings, store_folder: Path, purged_queues: None
) -> None:
    """BerriAI/litellm #8953, #40857: `content_filter` is passed on as such, whole and streamed; `/generate` reports it, and stores no
    empty answer. What the server does not take is in the answer, and in the status.
    """

    def respond(request: dict[str, Any]) -> RawAnswer:
        if "repetition_penalty" in request:
            return error("Unrecognized request argument supplied: repetition_penalty")
        case = request["messages"][-1]["content"]
        if case == "refused prompt":
            return error("The prompt was filtered", code="content_filter")
        text = {"cut": "I ", "empty": "", "refusal": None}.get(str(case), "x")
        refusal = {"refusal": "I will not."} if case == "refusal" else {}
        reason = "stop" if refusal else "content_filter"
        return events(chunk(text, **refusal), chunk(finish=reason)) if request.get("stream") else completion(text, reason, **refusal)

    async with text_product(respond, monkeypatch, start_worker, bus_settings, store_folder) as product:
        for case, text in (("cut", "I "), ("empty", ""), ("refusal", "I will not.")):
            choice = (await product.chat(case)).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (text, "content_filter")
            lines = (await product.chat(case, stream=True)).text.split("\n")
            last = json.loads([line for line in lines if line.startswith("data: {")][-1].removeprefix("data: "))
            assert last["choices"][0]["finish_reason"] == "content_filter"
        filtered = await product.chat("refused prompt")
        assert (filtered.status_code, filtered.json()["error"]["code"]) == (400, "content_filter")

        cut = (await product.generate("cut")).json()
        assert (cut["response"], cut["model_info"]["finish_reason"]) == ("I ", "content_filter")
        assert "left_out" not in cut["model_info"], "the client has not sent it"
        before = (await product.http.get("/conversations")).json()["total_conversations"]
        empty = await product.generate("empty")
        assert (empty.status_code, "filtered" in empty.json()["detail"]) == (400, True)
        assert (await product.http.get("/conversations")).json()["total_conversations"] == before

        asked = (await product.chat("cut", repetition_penalty=1.2)).json()
        assert asked["left_out"] == ["repetition_penalty"]
        assert "left_out" not in (await product.chat("cut")).json()
        lines = (await product.chat("cut", repetition_penalty=1.2, stream=True)).text.split("\n")
        assert any('"left_out": ["repetition_penalty"]' in line and "content_filter" in line for line in lines)

        async def is_reported() -> bool:
            config = (await product.http.get("/health")).json()["engine_config"]
            return bool(config.get("adapted_parameters") == {"repetition_penalty": "left out"})

        await wait_until(is_reported, 10)  # the gateway keeps a status for a second
