"""Public reports of servers that are compatible with OpenAI's API, each in its own way: what they refuse, leave out and add.

Each case names its report. The servers are real sockets; the engines are those of the steps text (openai_text) and consult (openai_vlm).
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from actors.engines.language.requests import VlmRequest
from actors.engines.remote import parameters
from actors.engines.remote.openai_client import ServerRefusal
from actors.engines.remote.parameters import ServerParameters
from actors.llm.settings import TextSettings
from actors.vision.settings import VlmSettings
from bus.errors import PermanentError
from tests.support.raw_openai_server import (
    RawAnswer,
    completion,
    error,
    whole_or_stream,
)
from tests.support.server_lab import lab, refusing

pytestmark = pytest.mark.timeout(60)
USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


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
    """Twenty at once: one of them is refused, the others wait for what it learns, which is logged once."""
    async with lab(refusing("repetition_penalty", "seed", answer=pydantic_extra)) as text:
        with capture_logs() as logs:
            assert await asyncio.gather(*(text.text(**ALL_OPTIONS) for _ in range(20))) == ["hello"] * 20
    assert len([request for request in text.server.requests if "seed" in request]) == 2
    assert len(text.server.requests) == 22
    assert len([log for log in logs if log["event"] == "server.parameters_adapted"]) == 1


async def test_slow_first_answer_delays_the_others_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has learned until then is used; the others do not wait for the end of its answer."""
    monkeypatch.setattr(parameters, "FIRST_SECONDS", 0.05)
    known, slow = ServerParameters(), asyncio.Event()

    async def send_slowly(sent: dict[str, Any]) -> str:
        if "seed" in sent:
            raise ServerRefusal(400, "Unrecognized request argument supplied: seed")
        await slow.wait()
        return "first"

    async def send(sent: dict[str, Any]) -> dict[str, Any]:
        return sent

    body = {"model": "m", "messages": USER, "seed": 7}
    first = asyncio.create_task(known.send(body, send_slowly))
    await asyncio.sleep(0)
    assert await known.send(body, send) == ({"model": "m", "messages": USER}, ("seed",))
    slow.set()
    assert (await first)[0] == "first"


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
        assert (await rig.vlm.generate(VlmRequest("?", (), 64, 1.1))).text == "hello"
        count = len(rig.server.requests)
        await rig.vlm.generate(VlmRequest("?", (), 64, 1.1))
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
