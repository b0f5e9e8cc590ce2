"""Refusals of servers that are compatible with OpenAI's API: what one refusal must not teach, and forms in which a parameter is named.

The texts are those of public servers and frameworks; the servers are real sockets.
"""

import json
from typing import Any

import pytest

from actors.engines.language.requests import VlmRequest
from actors.engines.remote.openai_client import ServerRefusal
from actors.engines.remote.parameters import ServerParameters
from actors.engines.remote.refusals import MAX_LIMITS, token_limit
from bus.errors import PermanentError, TemporaryError
from tests.support.raw_openai_server import RawAnswer, completion, error, whole_or_stream
from tests.support.server_lab import lab

pytestmark = pytest.mark.timeout(60)
SCHEMA = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "input length and `max_tokens` exceed context limit: 50 + {0} > 8192, decrease input length or `max_tokens`", id="sum"
        ),
        pytest.param("The sum of prompt tokens (500) and max_tokens ({0}) must not exceed 8192.", id="prompt and answer"),
        pytest.param("max_tokens {0} exceeds your plan: 1000 requests per minute, remaining 20 tokens", id="a plan"),
        pytest.param("Quota: max_tokens {0} too large, request id 1234, remaining quota 900 tokens", id="a quota"),
    ],
)
async def test_request_that_exceeds_something_else_teaches_nothing(text: str) -> None:
    """Anthropic's, and gateways': it is refused with the server's words, and the next client gets the whole of its `max_tokens`."""
    limit = 5000
    async with lab(lambda sent: error(text.format(sent["max_tokens"])) if sent["max_tokens"] > limit else completion()) as rig:
        with pytest.raises(PermanentError, match="max_tokens"):
            await rig.text(max_tokens=8190)
        await rig.text(max_tokens=4096)
    assert [sent["max_tokens"] for sent in rig.server.requests] == [8190, 4096]
    assert rig.parameters.describe("m") == {}


async def test_limit_of_one_long_prompt_holds_for_its_request_alone() -> None:
    """vLLM's older text: `max_tokens` must leave room for the prompt, and a shorter prompt leaves more."""

    def respond(sent: dict[str, Any]) -> RawAnswer:
        room = 4096 - len(sent["messages"][0]["content"])
        return error(f"max_tokens must be at most {room}: context is 4096") if sent["max_tokens"] > room else completion()

    async with lab(respond) as rig:
        await rig.chunks("x" * 3000, max_tokens=4000)
        await rig.chunks("hi", max_tokens=4000)
    assert [sent["max_tokens"] for sent in rig.server.requests] == [4000, 1096, 4000]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max_tokens must be at most 2,048", 2048),
        ("max_tokens: at most 1,048,576 tokens", 1_048_576),
        ("max_tokens参数非法: 取值范围为[1, 2048]", 2048),
        ("The maximum tokens you requested exceeds the model limit of 2048. Try again with a value that is lower than 2048.", 2048),
        ("max_tokens 9000 is too large for qwen-72 (version 240905): limit is 2048, requested at 1732", 2048),
        ("max_tokens must be less than 4096", 4095),
        ("max_tokens <= 4096", 4096),
        ("max_tokens must be at least 2000", None),
        ("max_tokens is too large: 9000, request 1234", None),
        ("max_tokens must be at most 2.048 times 7", None),
    ],
)
def test_limit_is_the_number_that_is_named_as_one(text: str, limit: int | None) -> None:
    assert token_limit(text) == limit


async def test_limits_that_never_end_are_few_requests() -> None:
    """A server that wants a little less each time is asked a few times, and not thousands of times."""

    def respond(sent: dict[str, Any]) -> RawAnswer:
        words = "abcdefghij"[len(rig.server.requests) % 10]
        return error(f"{words}: max_tokens must be less than {sent['max_tokens'] - 1}")

    async with lab(respond) as rig:
        with pytest.raises(PermanentError):
            await rig.text(max_tokens=4096)
    assert len(rig.server.requests) == MAX_LIMITS + 1


async def test_answer_that_never_ends_is_bounded_in_time_for_the_vision_engine() -> None:
    """All requests of one verdict share the time of one, also where a server sends a byte now and then."""
    async with lab(lambda _: RawAnswer(200, pieces=(b" ",) * 1_000_000)) as rig:
        rig.http.timeout = 0.2
        with pytest.raises(TemporaryError, match="did not finish within"):
            await rig.vlm.generate(VlmRequest("?", (), 16))


NAMED = [
    pytest.param(RawAnswer(400, {"seed": ["Unknown field."]}), id="Django REST: the name is a key"),
    pytest.param(RawAnswer(400, {"errors": {"seed": ["is not a recognised parameter"]}}), id="a key below errors"),
    pytest.param(
        RawAnswer(400, {"errors": {"$.seed": ["The JSON property could not be mapped to any .NET member"]}}), id="ASP.NET: a path"
    ),
    pytest.param(error("当前模型不支持参数 seed", code="1210"), id="Zhipu: in Chinese"),
    pytest.param(error("参数错误", code="invalid_parameter", param="seed"), id="the field param alone"),
    pytest.param(error("Der Parameter 'seed' wird nicht unterstützt"), id="in German"),
    pytest.param(error("The following `model_kwargs` are not used by the model: ['seed']"), id="transformers"),
    pytest.param(error("No endpoints found that support parameter seed", 404), id="OpenRouter: 404"),
    pytest.param(error("Unrecognized field (14 known properties: max_tokens, temperature): seed"), id="Jackson: a list of what is known"),
    pytest.param(error("unknown variant, expected one of `max_tokens`, `top_p`; got seed", 422), id="serde: a list of what is known"),
]


@pytest.mark.parametrize("answer", NAMED)
async def test_parameter_is_found_in_every_form_of_refusal(answer: RawAnswer) -> None:
    """Nothing else is changed, neither now nor for the next request."""
    async with lab(lambda sent: answer if "seed" in sent else whole_or_stream(sent)) as rig:
        assert (await rig.chunks(seed=7))[-1].left_out == ("seed",)
        assert rig.parameters.describe("m") == {"seed": "left out"}
    assert len(rig.server.requests) == 2
    assert {"max_tokens", "temperature", "top_p"} <= rig.server.requests[-1].keys()


async def test_value_that_the_field_param_names_is_the_client_s() -> None:
    async with lab(lambda sent: error("Invalid value", param="seed") if sent["seed"] == 9 else completion()) as rig:
        with pytest.raises(PermanentError):
            await rig.text(seed=9)
    assert rig.parameters.describe("m") == {}


async def test_change_that_does_not_help_is_undone() -> None:
    """A text that names a parameter by the way: the one that is refused is another."""
    message = "Unsupported field. This is max_tokens-aware, see temperature and seed"
    async with lab(lambda sent: error(message) if "seed" in sent else completion()) as rig:
        assert await rig.text(seed=7) == "hello"
    assert rig.parameters.describe("m") == {"seed": "left out"}
    assert {"max_tokens", "temperature"} <= rig.server.requests[-1].keys()


async def test_every_request_of_a_hopeless_refusal_ends() -> None:
    known, count = ServerParameters(), 0

    async def send(sent: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        raise ServerRefusal(400, f"Unsupported parameter: {max(sent.keys() - {'model'}, default='none')}, try {'abcdefghijklmnop'[count]}")

    with pytest.raises(ServerRefusal):
        await known.send({"model": "m", "max_tokens": 9, "seed": 1, "top_p": 1, "temperature": 1, "stop": ["a"]}, send)
    assert count <= 16
    assert known.describe("m") == {}


def test_hint_about_the_address_is_given_where_the_route_is_unknown() -> None:
    assert "/v1?" in str(ServerRefusal(404, '{"detail": "Not Found"}'))
    assert "/v1?" not in str(ServerRefusal(404, "No endpoints found that support parameter seed"))


@pytest.mark.parametrize(
    ("message", "later"),
    [
        pytest.param("Request body does not match the schema: messages[0].content is too long", [True], id="of the request's own form"),
        pytest.param("The schema of this request is not supported", [True, False, True], id="of one schema"),
        pytest.param("response_format is not supported", [True, False, False], id="of every schema"),
    ],
)
async def test_refusal_of_one_picture_leaves_the_others_their_schema(message: str, later: list[bool]) -> None:
    """Verdicts without a schema for an hour are right only where the server knows none."""

    def respond(sent: dict[str, Any]) -> RawAnswer:
        refused = "big" in str(sent["messages"]) and "response_format" in sent
        return error(message) if refused else completion('{"ok": true}')

    async with lab(respond) as rig:
        if len(later) == 1:
            with pytest.raises(PermanentError):
                await rig.vlm.generate(VlmRequest("big", (), 16, 1.0, SCHEMA))
            later = [True, True]
        else:
            assert not (await rig.vlm.generate(VlmRequest("big", (), 16, 1.0, SCHEMA))).constrained
        await rig.vlm.generate(VlmRequest("fine", (), 16, 1.0, SCHEMA))
    assert ["response_format" in sent for sent in rig.server.requests] == later


async def test_request_that_is_refused_without_the_schema_too_teaches_nothing() -> None:
    """The schema was not the cause."""

    def respond(sent: dict[str, Any]) -> RawAnswer:
        return error("response_format is not supported for this picture") if "big" in str(sent["messages"]) else completion('{"ok": true}')

    async with lab(respond) as rig:
        with pytest.raises(PermanentError):
            await rig.vlm.generate(VlmRequest("big", (), 16, 1.0, SCHEMA))
        assert (await rig.vlm.generate(VlmRequest("fine", (), 16, 1.0, SCHEMA))).constrained
