"""Public reports of servers that are compatible with OpenAI's API, each in its own way: what they refuse, leave out and add.

Each case names its report. The servers are real sockets; the engines are those of the steps text (openai_text) and consult (openai_vlm).
"""

import asyncio
import gzip
import json
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from actors.engines.language.requests import GenerationChunk, GenerationRequest, VlmRequest
from actors.engines.remote import parameters
from actors.engines.remote.openai_text import OpenAiTextEngine
from actors.engines.remote.openai_vlm import OpenAiVlm, open_openai_vlm
from actors.engines.remote.parameters import ServerParameters, parse_profile
from actors.llm.settings import TextSettings
from actors.vision.settings import VlmSettings
from bus.errors import PermanentError, TemporaryError
from bus.settings import BusSettings
from ops.commands.doctor_models import check_model_servers
from tests.support.broker_client import StartWorker
from tests.support.raw_openai_server import (
    RawAnswer,
    RawOpenAiServer,
    Respond,
    chunk,
    completion,
    error,
    event,
    events,
    open_raw_server,
    stream,
    whole_or_stream,
)
from tests.support.text_product import text_product

pytestmark = pytest.mark.timeout(60)
USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


class Lab:
    """A server, and an engine that asks it. `profile`: the setting TEXT_SERVER_PARAMETERS."""

    def __init__(self, server: RawOpenAiServer, http: httpx.AsyncClient, model: str | None, profile: str, patience: float) -> None:
        self.server, self.http = server, http
        self.parameters = ServerParameters(parse_profile(profile))
        self.engine = OpenAiTextEngine(http, model, patience, parameters=self.parameters)
        self.vlm = OpenAiVlm(http, model or "m", ServerParameters(parse_profile(profile)))

    async def chunks(self, content: str = "hi", **options: Any) -> list[GenerationChunk]:
        fields: dict[str, Any] = {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9} | options
        request = GenerationRequest([{"role": "user", "content": content}], **fields)
        return [chunk async for chunk in self.engine.generate(request, None)]

    async def text(self, **options: Any) -> str:
        return "".join(chunk.text for chunk in await self.chunks(**options))


@asynccontextmanager
async def lab(respond: Respond, model: str | None = "m", profile: str = "", patience: float = 5.0) -> Any:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_raw_server(respond))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"{server.url}/"))
        yield Lab(server, http, model, profile, patience)


def refusing(*names: str, answer: Callable[[str], RawAnswer]) -> Respond:
    """A server that refuses these parameters, the first of them in its answer, and else gives a sound answer."""

    def respond(request: dict[str, Any]) -> RawAnswer:
        unknown = [name for name in names if name in request]
        return answer(unknown[0]) if unknown else whole_or_stream(request)

    return respond


def openai_unsupported(name: str) -> RawAnswer:
    message = f"Unsupported parameter: '{name}' is not supported with this model. Use 'max_completion_tokens' instead."
    return error(message, param=name, code="unsupported_parameter")


def pydantic_extra(name: str) -> RawAnswer:
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 1.05}]
    return RawAnswer(422, {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"})


def quoted_in_text(name: str) -> RawAnswer:
    """Mistral's proxy put its JSON into a text."""
    inner = json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]})
    return RawAnswer(422, {"object": "error", "message": inner, "type": "internal_error_proxy", "param": None, "code": "1000"})


def nim_detail(name: str) -> RawAnswer:
    detail = f"body -> {name}\n  Extra inputs are not permitted (type=extra_forbidden)"
    return RawAnswer(422, {"type": "urn:inference-service:problem-details:unprocessable-entity", "status": 422, "detail": detail})


def gemini_list(name: str) -> RawAnswer:
    message = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return RawAnswer(400, [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}])


def in_camel_case(name: str) -> RawAnswer:
    first, *rest = name.split("_")
    return RawAnswer(
        400, {"code": "Client specified an invalid argument", "error": f"Argument not supported: {first}{''.join(map(str.title, rest))}"}
    )


REFUSALS = [
    pytest.param("max_tokens", openai_unsupported, id="openai/openai-python #2046: max_tokens"),
    pytest.param("stream_options", pydantic_extra, id="yetone/avante.nvim #2347: stream_options"),
    pytest.param("repetition_penalty", lambda name: error(f"Unrecognized request argument supplied: {name}"), id="vllm-project/vllm #1620"),
    pytest.param("frequency_penalty", quoted_in_text, id="mistralai/platform-docs-public #7"),
    pytest.param("presence_penalty", nim_detail, id="NVIDIA/garak #748"),
    pytest.param("seed", gemini_list, id="Vali-98/ChatterUI #227"),
    pytest.param("presence_penalty", in_camel_case, id="names in camel case"),
    pytest.param("repetition_penalty", lambda name: error(f"Unexpected keys in the request: {{'{name}'}}", 422), id="transformers serve"),
    pytest.param("stop", lambda name: error(f"'{name}' is not supported with this model.", param=name), id="stop of reasoning models"),
    pytest.param(
        "temperature",
        lambda name: error(
            f"Unsupported value: '{name}' does not support 0.7 with this model. Only the default (1) value is supported.",
            param=name,
            code="unsupported_value",
        ),
        id="OpenHands/OpenHands #4131: temperature is fixed to 1",
    ),
]
ALL_OPTIONS = {"repetition_penalty": 1.05, "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 7, "stop": ("###",)}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("name", "answer"), REFUSALS)
async def test_refused_parameter_is_learned_once(name: str, answer: Callable[[str], RawAnswer], streamed: bool) -> None:
    """The answer arrives; the second request is not refused again; what is sent otherwise is in the status and, once, in the log."""
    async with lab(refusing(name, answer=answer)) as text:
        with capture_logs() as logs:
            first = await text.chunks(stream=streamed, **ALL_OPTIONS)
            count = len(text.server.requests)
            await text.chunks(stream=streamed, **ALL_OPTIONS)
        state = await text.engine.state()
    if name == "stream_options" and not streamed:
        assert count == 1
        return
    assert "".join(chunk.text for chunk in first) == "hello"
    assert (count, len(text.server.requests)) == (2, 3)
    assert name not in text.server.requests[-1]
    assert list(state.config["adapted_parameters"]) == [name]
    assert [log["parameters"] for log in logs if log["event"] == "server.parameters_adapted"] == [state.config["adapted_parameters"]]
    reported = name not in {"max_tokens", "stop", "stream_options"}
    assert first[-1].left_out == ((name,) if reported else ())


async def test_max_tokens_has_its_other_name() -> None:
    """ThinkInAIXYZ/deepchat #336, router-for-me/CLIProxyAPI #2101: the limit of the answer is kept under the name the server knows."""
    async with lab(refusing("max_tokens", answer=openai_unsupported)) as text:
        assert await text.text() == "hello"
    assert text.server.requests[-1]["max_completion_tokens"] == 64


async def test_several_parameters_are_refused_one_after_another() -> None:
    """NVIDIA/garak #748: a server that takes almost nothing is asked until it answers."""
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "top_p")
    async with lab(refusing(*names, answer=nim_detail)) as text:
        assert await text.text(**ALL_OPTIONS) == "hello"
    assert set(text.server.requests[-1]) == {"model", "messages", "max_tokens", "temperature", "stop"}


async def test_one_of_temperature_and_top_p_is_left_out() -> None:
    """A server that takes either of them: the temperature stays."""
    both = error("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    async with lab(lambda request: both if {"temperature", "top_p"} <= request.keys() else whole_or_stream(request)) as text:
        assert await text.text() == "hello"
    assert "temperature" in text.server.requests[-1]


async def test_concurrent_requests_learn_once() -> None:
    """Twenty at once: each is refused at most once, and what was learned is logged once."""
    async with lab(refusing("repetition_penalty", answer=pydantic_extra)) as text:
        with capture_logs() as logs:
            assert await asyncio.gather(*(text.text(**ALL_OPTIONS) for _ in range(20))) == ["hello"] * 20
    assert len(text.server.requests) <= 40
    assert len([log for log in logs if log["event"] == "server.parameters_adapted"]) == 1


async def test_learned_parameter_is_tried_again_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was updated gets the parameter again."""
    monkeypatch.setattr(parameters, "LEARNED_SECONDS", 0.05)
    async with lab(refusing("seed", answer=gemini_list)) as text:
        await text.text(seed=7)
        text.server.respond = whole_or_stream
        await asyncio.sleep(0.06)
        await text.text(seed=7)
    assert text.server.requests[-1]["seed"] == 7


def test_number_of_remembered_models_is_bounded() -> None:
    known = ServerParameters()
    for number in range(3 * parameters.MAX_MODELS):
        known.remember(f"model-{number}", {"seed": parameters.Change(None)})
    assert len(known._learned) == parameters.MAX_MODELS


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_profile_of_the_settings_needs_no_refusal(streamed: bool) -> None:
    """NVIDIA/NeMo, Azure, Mistral: an operator who knows the server names what it does not take."""
    profile = "max_tokens=max_completion_tokens, stream_options, repetition_penalty"
    async with lab(whole_or_stream, profile=profile) as text:
        assert await text.text(stream=streamed, repetition_penalty=1.1) == "hello"
    (request,) = text.server.requests
    assert "max_completion_tokens" in request
    assert not {"max_tokens", "stream_options", "repetition_penalty"} & request.keys()


@pytest.mark.parametrize("settings", [TextSettings, VlmSettings])
@pytest.mark.parametrize("profile", ["messages", "response_format", "max_tokens=a b", "max-tokens"])
def test_wrong_profile_is_reported_at_the_start(settings: type, profile: str) -> None:
    with pytest.raises(ValueError, match="none of the parameters"):
        settings(server_parameters=profile)


async def test_value_of_a_client_is_not_taken_for_a_missing_parameter() -> None:
    """A seed out of range is the client's to change: it is refused with the server's words, and other requests keep their seed."""

    def respond(request: dict[str, Any]) -> RawAnswer:
        return error("seed must be less than 4294967296", param="seed") if request["seed"] > 2**32 else completion()

    async with lab(respond) as text:
        with pytest.raises(PermanentError, match="must be less than") as raised:
            await text.text(seed=2**40)
        await text.text(seed=7)
    assert raised.value.code == "server-refused"
    assert text.server.requests[-1]["seed"] == 7


async def test_words_of_a_client_in_a_refusal_teach_nothing() -> None:
    """A server that quotes the request in its error: what the request's text says is not what the server does not take."""
    trap = "Unsupported parameter: 'seed' is not supported"

    def respond(request: dict[str, Any]) -> RawAnswer:
        detail = [{"type": "too_long", "loc": ["body", "messages"], "msg": "message has more characters than allowed", "input": request}]
        return RawAnswer(422, {"detail": detail}) if trap in str(request["messages"]) else whole_or_stream(request)

    async with lab(respond) as text:
        with pytest.raises(PermanentError):
            await text.chunks(trap, seed=7)
        await text.text(seed=7)
    assert text.server.requests[-1]["seed"] == 7


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("max_tokens is too large: 9000. This model supports at most 4096 completion tokens, whereas you provided 9000.", 4096),
        ("Range of max_tokens should be [1, 2000]", 2000),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
        ("`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the context", 8192),
    ],
)
async def test_limit_of_the_server_replaces_a_larger_one(message: str, limit: int) -> None:
    """Reports of OpenAI, DashScope, DeepSeek and Groq: our default or a client's limit exceeds that of the model."""
    async with lab(lambda request: error(message) if request["max_tokens"] > limit else completion()) as text:
        assert await text.text(max_tokens=9000) == "hello"
        await text.text(max_tokens=100)
    assert [request["max_tokens"] for request in text.server.requests] == [9000, limit, 100]


async def test_temperature_zero_is_left_out_where_it_must_be_positive() -> None:
    """Text generation servers that want a strictly positive temperature: zero is left out, others are sent."""

    def respond(request: dict[str, Any]) -> RawAnswer:
        return error("`temperature` must be strictly positive", 422) if request.get("temperature") == 0 else completion()

    async with lab(respond) as text:
        assert await text.text(temperature=0) == "hello"
        await text.text(temperature=0.5)
    assert text.server.requests[-1]["temperature"] == 0.5


@pytest.mark.parametrize("profile", ["", "repetition_penalty,max_tokens=max_completion_tokens"], ids=["learned", "profile"])
async def test_vision_engine_shares_the_rules(profile: str) -> None:
    """genonai/doc_parser PR #260: consult sends its repetition penalty to a strict server."""
    async with lab(refusing("repetition_penalty", "max_tokens", answer=openai_unsupported), profile=profile) as rig:
        assert (await rig.vlm.generate(VlmRequest("?", None, 64, 1.1))).text == "hello"
        count = len(rig.server.requests)
        await rig.vlm.generate(VlmRequest("?", None, 64, 1.1))
    assert (count, len(rig.server.requests)) == ((1, 2) if profile else (3, 4))
    assert rig.server.requests[-1]["max_completion_tokens"] == 64


async def test_requested_json_is_never_left_out() -> None:
    """A server without `response_format`: the request is refused with the cause, and not answered as if no JSON had been requested."""
    refusal = error("This response_format type is unavailable now")
    async with lab(lambda request: refusal if "response_format" in request else completion("no json")) as text:
        with pytest.raises(PermanentError, match="response_format") as raised:
            await text.text(schema=SCHEMA)
    assert raised.value.code == "json-unsupported"
    assert len(text.server.requests) == 1


async def test_any_json_object_is_requested_as_a_schema_where_only_that_is_taken() -> None:
    """lmstudio-ai/lmstudio-bug-tracker #189, willmiao/ComfyUI-Lora-Manager #1033: `json_object` is refused, `json_schema` is taken."""
    refusal = RawAnswer(400, {"error": "'response_format.type' must be 'json_schema' or 'text'"})

    def respond(request: dict[str, Any]) -> RawAnswer:
        return refusal if request["response_format"]["type"] == "json_object" else completion("{}")

    async with lab(respond) as text:
        assert await text.text(schema={"type": "object"}) == "{}"
        await text.text(schema={"type": "object"})
    assert [request["response_format"]["type"] for request in text.server.requests] == ["json_object", "json_schema", "json_schema"]


async def test_schema_that_is_invalid_under_strict_rules_is_sent_without_them() -> None:
    """OpenAI's strict rules want `additionalProperties: false` everywhere; no client asked us for them."""
    message = (
        "Invalid schema for response_format 'verdict': In context=(), 'additionalProperties' is required to be supplied and to be false."
    )

    def respond(request: dict[str, Any]) -> RawAnswer:
        strict = request["response_format"]["json_schema"]["strict"]
        return error(message, param="response_format") if strict else completion('{"ok": true}')

    async with lab(respond) as text:
        assert await text.text(schema=SCHEMA) == '{"ok": true}'


async def test_schema_that_the_server_calls_invalid_is_the_request_s_fault() -> None:
    async with lab(lambda _: error("Invalid schema for response_format 'verdict': unknown type", param="response_format")) as text:
        with pytest.raises(PermanentError) as raised:
            await text.text(schema=SCHEMA)
    assert raised.value.code == "schema-refused"


NO_LIST = [
    pytest.param(RawAnswer(404, {"detail": "Not Found"}), id="nextcloud/integration_openai #44: 404"),
    pytest.param(RawAnswer(401, {"error": "no"}), id="the key may not list models: 401"),
    pytest.param(RawAnswer(403, {"error": "no"}), id="403"),
    pytest.param(RawAnswer(405), id="BoltAI/BoltAI #325: 405"),
    pytest.param(RawAnswer(500, {"error": "not implemented"}), id="500"),
    pytest.param(RawAnswer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}), id="a page of HTML with 200"),
    pytest.param(RawAnswer(200, {"object": "list", "data": None}), id="data is null"),
    pytest.param(RawAnswer(200, {"object": "list", "data": []}), id="an empty list"),
    pytest.param(RawAnswer(200, b""), id="an empty body"),
]


@pytest.mark.parametrize("models", NO_LIST)
async def test_missing_list_of_models_is_no_reason_to_refuse(models: RawAnswer) -> None:
    """The named model is asked, by both engines; the vision engine is ready."""
    async with lab(lambda request: completion(f"from {request['model']}"), model="named") as rig:
        rig.server.models = models
        assert await rig.text() == "from named"
        assert (await rig.vlm.generate(VlmRequest("?"))).text == "from named"
        await rig.vlm.check()


async def test_missing_list_without_a_named_model_says_what_to_set() -> None:
    async with lab(lambda _: completion(), model=None) as text:
        text.server.models = RawAnswer(404)
        with pytest.raises(PermanentError, match="VLLM_MODEL must name one"):
            await text.text()


async def test_server_that_loads_is_waited_for() -> None:
    """ggml-org/llama.cpp: 503 `Loading model` from every route until the model is there; Retry-After may be a fraction."""
    async with lab(lambda _: completion()) as text:
        text.server.models = RawAnswer(503, {"error": {"code": 503, "message": "Loading model"}}, {"Retry-After": "0.01"})
        asking = asyncio.create_task(text.text())
        await asyncio.sleep(0.05)
        text.server.models = RawAnswer(200, {"data": [{"id": "m"}]})
        assert await asking == "hello"


@pytest.mark.parametrize(
    ("models", "requested", "used"),
    [
        pytest.param({"data": [{"id": "models/gemini-flash"}]}, "gemini-flash", "models/gemini-flash", id="Gemini lists names in a folder"),
        pytest.param({"data": [{"id": "other"}, {"id": "llama3:latest"}]}, "llama3", "llama3:latest", id="Ollama adds a tag"),
        pytest.param([{"id": "m", "object": "model"}], "m", "m", id="Together answers a plain list"),
        pytest.param({"models": [{"name": "m"}]}, "m", "m", id="a list under another name"),
        pytest.param({"data": ["m"]}, "m", "m", id="a list of names"),
        pytest.param({"data": [{"id": "only"}]}, "absent", "only", id="the first model, where the named one is not served"),
    ],
)
async def test_lists_of_models_in_other_forms(models: Any, requested: str, used: str) -> None:
    async with lab(lambda request: completion(request["model"]), model=requested) as text:
        text.server.models = RawAnswer(200, models)
        assert await text.text() == used


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
                await rig.vlm.generate(VlmRequest("?", None, 8, 1.0, schema))
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


async def test_server_that_does_not_stream_is_asked_for_the_whole_answer() -> None:
    async with lab(refusing("stream", answer=lambda name: error(f"'{name}' does not support true with this model.", param=name))) as text:
        assert await text.text(stream=True) == "hello"
    assert "stream_options" not in text.server.requests[-1]


async def test_vision_probe_learns_too() -> None:
    """The two short requests that find out whether a model reads images do not end as unknown on a strict server."""

    def respond(request: dict[str, Any]) -> RawAnswer:
        if "max_tokens" in request:
            return openai_unsupported("max_tokens")
        counts = {"prompt_tokens": len(str(request["messages"])), "completion_tokens": 1}
        return RawAnswer(200, completion().body | {"usage": counts})

    async with lab(respond) as text:
        assert await text.engine.vision() is True


async def test_outcome_of_a_filter_and_what_was_left_out_reach_the_client(
    monkeypatch: pytest.MonkeyPatch, start_worker: StartWorker, bus_settings: BusSettings, store_folder: Path, purged_queues: None
) -> None:
    """BerriAI/litellm #8953, #40857: `content_filter` is passed on as such, whole and streamed; `/generate` reports it, and stores no
    empty answer. What the server does not take is in the answer, and in the status.
    """

    def respond(request: dict[str, Any]) -> RawAnswer:
        if "repetition_penalty" in request:
            return pydantic_extra("repetition_penalty")
        case = request["messages"][-1]["content"]
        if case == "refused prompt":
            return error("The prompt was filtered", code="content_filter")
        text = {"cut": "I ", "empty": "", "refusal": None}.get(case, "x")
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
        assert (cut["response"], cut["model_info"]["finish_reason"], cut["model_info"]["left_out"]) == (
            "I ",
            "content_filter",
            ["repetition_penalty"],
        )
        empty = await product.generate("empty")
        assert (empty.status_code, "filtered" in empty.json()["detail"]) == (400, True)
        assert len((await product.http.get("/conversations")).json()["conversations"]) == 1

        asked = (await product.chat("cut", repetition_penalty=1.2)).json()
        assert asked["left_out"] == ["repetition_penalty"]
        assert "left_out" not in (await product.chat("cut")).json()
        lines = (await product.chat("cut", repetition_penalty=1.2, stream=True)).text.split("\n")
        assert any('"left_out": ["repetition_penalty"]' in line and "content_filter" in line for line in lines)
        assert (await product.http.get("/health")).json()["engine_config"]["adapted_parameters"] == {"repetition_penalty": "left out"}


@pytest.mark.parametrize("status", [404, 405])
async def test_doctor_warns_of_a_server_without_a_list(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """OpenCoworkAI/open-codesign #179, EKKOLearnAI/hermes-studio #2503: a test of the connection calls such a server broken."""
    async with open_raw_server(lambda _: completion()) as server:
        server.models = RawAnswer(status)
        monkeypatch.setenv("VLLM_SERVER_URL", server.url)
        monkeypatch.setenv("VLLM_MODEL", "named")
        checks = [check for check in await check_model_servers() if check.name == "model-server-text"]
    (check,) = checks
    assert (check.ok, "named is asked all the same" in check.detail) == (True, True)


@pytest.mark.parametrize(
    ("value", "message"),
    [(1, "Input validation error: `top_p` must be > 0.0 and < 1.0"), (1.0, "`top_p` must be less than 1")],
    ids=["argilla-io/synthetic-data-generator #48: the servers of Hugging Face", "with another message"],
)
async def test_top_p_of_one_is_left_out_where_it_must_be_less(value: float, message: str) -> None:
    """It is our default on `/v1`, as OpenAI's, and selects nothing."""

    def respond(request: dict[str, Any]) -> RawAnswer:
        return RawAnswer(422, {"error": message, "error_type": "validation"}) if request.get("top_p") == 1 else completion()

    async with lab(respond) as text:
        assert await text.text(top_p=value) == "hello"
        await text.text(top_p=0.5)
    assert text.server.requests[-1]["top_p"] == 0.5


async def test_error_without_an_error_member_is_reported_with_its_words() -> None:
    """XpressAI/xaibo PR #36, runpod-workers/worker-vllm #57: 200, no choices, and the cause in another member."""
    async with lab(lambda _: RawAnswer(200, {"code": "rate_limit_daily", "message": "the limit of the day"}), patience=0.1) as text:
        with pytest.raises(TemporaryError, match="the limit of the day"):
            await text.text()
        text.server.respond = lambda _: RawAnswer(200, {"code": 404, "message": "The model does not exist.", "object": "error"})
        with pytest.raises(PermanentError, match="does not exist"):
            await text.text()


async def test_address_with_the_route_of_chats_is_understood() -> None:
    """intuitem/ciso-assistant-community PR #4610: the whole address of the chat route is pasted into the setting."""
    async with (
        open_raw_server(lambda _: completion()) as server,
        open_openai_vlm(f"{server.url}/chat/completions", None, "m", 5) as vlm,
    ):
        assert (await vlm.generate(VlmRequest("?"))).text == "hello"


async def test_missing_route_names_the_cure() -> None:
    """andrewyng/openworker PR #448: an address without `/v1` ends as 404."""
    async with lab(lambda _: RawAnswer(404, b"404 page not found")) as text:
        with pytest.raises(PermanentError, match="does its address end with /v1"):
            await text.text()
