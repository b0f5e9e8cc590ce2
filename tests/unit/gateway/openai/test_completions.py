"""Completions of a text: the commands built from a request, the answer and the stream built from their results."""

import asyncio
import threading
from typing import Any, cast

import pytest
from fastapi import Request

from contracts.fault import Fault
from contracts.text import Text, TextDone
from gateway.openai import completions
from gateway.openai.completion_requests import CompletionRequest
from gateway.text import client
from tests.unit.gateway.compat.test_chat import DELTAS, DONE
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway
from tests.unit.gateway.openai.test_chat import SERVED, data_of
from tests.unit.gateway.openai.test_chat_answers import TOKEN, USAGE

DEFAULTS = {"raw_prompt": "Once", "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "stop": [], "max_tokens": 16}
NEXT = TOKEN | {"text": " two", "top": []}
LOGPROBS = {
    "tokens": ["one", " two"], "token_logprobs": [-0.25, -0.25],
    "top_logprobs": [{"one": -0.25, "two": -1.5}, {" two": -0.25}], "text_offset": [0, 3],
}  # fmt: skip
FIRST = {"response": "one two", "finish_reason": "length", "logprobs": [TOKEN, NEXT]}
ANSWERED = DONE | FIRST | {"answers": [FIRST, {"response": "three"}], "usage": USAGE, "deltas": None}


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"prompt": ["Once"]}, {}),
        (
            {"max_tokens": 5, "n": 2, "logprobs": 0, "stop": "."},
            {"max_tokens": 5, "n": 2, "with_logprobs": True, "top_logprobs": 0, "stop": ["."]},
        ),
        ({"logprobs": 3, "temperature": 0}, {"with_logprobs": True, "top_logprobs": 3, "temperature": 0.0}),
        ({"best_of": 2, "n": 2}, {"n": 2}),
        ({"best_of": 1, "echo": False, "suffix": None, "user": "u", "logit_bias": {}}, {}),
    ],
)
def test_request_becomes_command(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    (command,) = CompletionRequest.model_validate({"model": "text", "prompt": "Once"} | fields).commands(None)
    assert command == DEFAULTS | changes
    Text.model_validate(command)


def test_minus_one_leaves_the_limit_to_the_worker() -> None:
    (command,) = CompletionRequest.model_validate({"model": "text", "prompt": "Once", "max_tokens": -1}).commands("bistro")
    assert ("max_tokens" in command, command["lora_adapter"]) == (False, "bistro")


async def post(fake: FakeGateway, **fields: Any) -> Any:
    return await fake.http.post("/v1/completions", json={"model": "tiny", "prompt": "Once"} | fields)


async def test_prompts_and_answers_are_choices_in_order(gateway: OpenFakeGateway) -> None:
    fake = gateway(SERVED | {"text": ANSWERED})
    body = (await post(fake, prompt=["a", "b"], n=2, logprobs=1)).json()
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [
        (0, "one two", "length"), (1, "three", "stop"), (2, "one two", "length"), (3, "three", "stop"),
    ]  # fmt: skip
    assert [choice["logprobs"] for choice in body["choices"][:2]] == [LOGPROBS, None]
    assert [command["raw_prompt"] for command in fake.publisher.commands("text")] == ["a", "b"]
    assert (body["object"], body["model"], body["usage"]["total_tokens"]) == ("text_completion", "tiny", 24)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}


async def test_stream_has_texts_then_reasons(gateway: OpenFakeGateway) -> None:
    fake = gateway(SERVED | {"text": ANSWERED | {"deltas": 3}})
    fake.publisher.deltas["text"] = [
        {"sequence": 0, "delta": "one", "logprobs": [TOKEN]},
        {"sequence": 1, "delta": "three", "choice": 1},
        {"sequence": 2, "delta": " two", "logprobs": [NEXT]},
    ]
    *chunks, usage, done = data_of((await post(fake, stream=True, n=2, logprobs=1, stream_options={"include_usage": True})).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in choices] == [
        (0, "one", None), (1, "three", None), (0, " two", None), (0, "", "length"), (1, "", "stop"),
    ]  # fmt: skip
    assert choices[2]["logprobs"]["text_offset"] == [3]
    assert (usage["usage"]["total_tokens"], done) == (12, "[DONE]")


REFUSED = [
    ({"prompt": [1, 2]}, 400, "prompt"),
    ({"prompt": [[1, 2], [3]]}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": ["a"] * 129}, 400, "prompt"),
    ({"prompt": ["a"] * 16, "max_tokens": 511, "logprobs": 20}, 400, "logprobs"),
    ({"prompt": ["a"] * 2, "max_tokens": -1, "logprobs": 0}, 400, "max_tokens"),
    ({"stop": "x" * 2_000_000}, 413, None),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ["a"] * 9, "n": 16}, 400, "n"),
    ({"prompt": ["a", "b"], "stream": True}, 400, "prompt"),
    ({"echo": True}, 400, "echo"),
    ({"suffix": "end"}, 400, "suffix"),
    ({"best_of": 2}, 400, "best_of"),
    ({"logit_bias": {"1": 2}}, 400, "logit_bias"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"messages": []}, 400, "messages"),
    ({"model": "gpt-9"}, 404, "model"),
]


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED)
async def test_what_is_refused_names_its_field(gateway: OpenFakeGateway, fields: dict[str, Any], status: int, param: str) -> None:
    fake = gateway(SERVED | {"text": ANSWERED})
    response = await post(fake, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
    assert fake.publisher.commands("text") == []


@pytest.mark.parametrize(("deltas", "status"), [([], 400), (DELTAS, 200)])
async def test_failed_stream_has_no_done(gateway: OpenFakeGateway, deltas: list[dict[str, Any]], status: int) -> None:
    fake = gateway(SERVED | {"text": Fault(code="prompt-too-long", message="600 tokens", step="text")})
    fake.publisher.deltas["text"] = deltas
    response = await post(fake, stream=True)
    assert (response.status_code, "[DONE]" in response.text, "context_length_exceeded" in response.text) == (status, False, True)


async def test_stream_that_fails_before_its_first_text_has_a_status(gateway: OpenFakeGateway) -> None:
    """Reasoning is no text of a completion: nothing was sent."""
    fake = gateway(SERVED | {"text": Fault(code="prompt-too-long", message="600 tokens", step="text")})
    fake.publisher.deltas["text"] = [{"sequence": 0, "delta": "", "reasoning": "hm"}]
    response = await post(fake, stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("prompt", ["Once", ["a", "b"]])
@pytest.mark.parametrize("seconds", ["abc", "0"])
async def test_invalid_timeout_is_400(gateway: OpenFakeGateway, seconds: str, prompt: Any) -> None:
    body = {"model": "tiny", "prompt": prompt}
    fake = gateway(SERVED | {"text": ANSWERED})
    response = await fake.http.post("/v1/completions", json=body, headers={"X-Request-Timeout": seconds})
    assert (response.status_code, "X-Request-Timeout" in response.json()["error"]["message"]) == (400, True), response.text


async def test_as_many_prompts_as_langchain_sends_are_answered(gateway: OpenFakeGateway) -> None:
    """20 of them with two answers each."""
    fake = gateway(SERVED | {"text": lambda command: DONE | {"response": command["raw_prompt"], "answers": [], "deltas": None}})
    prompts = [f"prompt {number}" for number in range(40)]
    response = await post(fake, prompt=prompts, logprobs=1, max_tokens=100)
    assert [choice["text"] for choice in response.json()["choices"]] == prompts


async def test_a_few_prompts_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them share the time of the request."""
    running, most, given = 0, 0, list[float]()

    async def generate(request: Any, command: dict[str, Any], seconds: float) -> TextDone:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        given.append(seconds)
        await asyncio.sleep(0.01)
        running -= 1
        return TextDone.model_validate(ANSWERED)

    monkeypatch.setattr(completions, "generate_text", generate)
    results = await completions.generate_all(cast("Request", None), [{}] * 50, 60.0)
    assert (len(results), most) == (50, completions.PROMPTS_AT_A_TIME)
    assert given == sorted(given, reverse=True)
    assert given[0] > given[-1]


async def test_many_log_probabilities_are_read_beside_the_event_loop(gateway: OpenFakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, and their memory is held until the response was sent."""
    tokens = [TOKEN | {"top": [{"text": str(top), "logprob": -1.5} for top in range(20)]}] * 500
    fake = gateway(SERVED | {"text": ANSWERED | {"response": "one" * 500, "answers": [], "logprobs": tokens}})
    threads, held = [], []

    def recorded(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            threads.append(threading.current_thread())
            held.append(fake.services.file_memory.held_bytes)
            return function(*arguments)

        return call

    monkeypatch.setattr(client, "read_result", recorded(client.read_result))
    monkeypatch.setattr(completions, "completion_body", recorded(completions.completion_body))
    (choice,) = (await post(fake, max_tokens=500, logprobs=20)).json()["choices"]
    assert (len(choice["logprobs"]["tokens"]), len(choice["logprobs"]["top_logprobs"][0])) == (500, 21)
    assert (len(threads), threading.main_thread() in threads) == (2, False)
    assert (held, fake.services.file_memory.held_bytes) == ([0, 500 * 21 * client.LOGPROB_BYTES], 0)


async def test_one_failure_is_that_of_the_request(gateway: OpenFakeGateway) -> None:
    full = Fault(code="prompt-too-long", message="600 tokens", step="text")
    fake = gateway(SERVED | {"text": lambda command: full if command["raw_prompt"] == "b" else ANSWERED})
    response = await post(fake, prompt=["a", "b"])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
