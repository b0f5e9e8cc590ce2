"""Several answers, log probabilities, reasoning and token counts in OpenAI's form: whole and streamed."""

from typing import Any

from tests.unit.gateway.compat.test_chat import DONE
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.openai.test_chat import SERVED, USER, data_of

TOKEN = {"text": "one", "logprob": -0.25, "bytes": [111, 110, 101], "top": [{"text": "two", "logprob": -1.5}]}
TOP = {"token": "two", "logprob": -1.5, "bytes": [116, 119, 111]}
OPENAI_TOKEN = {"token": "one", "logprob": -0.25, "bytes": [111, 110, 101], "top_logprobs": [TOP]}
FIRST = {"response": "one", "finish_reason": "length", "logprobs": [TOKEN], "reasoning": "hm"}
SECOND = {"response": "two", "finish_reason": "stop"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "cached_tokens": 4, "reasoning_tokens": 2}
ANSWERED = DONE | FIRST | {"answers": [FIRST, SECOND], "usage": USAGE, "deltas": None}
DETAILS = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
BODY = {"model": "tiny", "messages": USER, "n": 2, "logprobs": True, "top_logprobs": 1}
DELTAS = [
    {"sequence": 0, "delta": "", "reasoning": "hm", "choice": 0},
    {"sequence": 1, "delta": "two", "choice": 1},
    {"sequence": 2, "delta": "one", "choice": 0, "logprobs": [TOKEN]},
]


async def test_answers_are_choices(gateway: OpenFakeGateway) -> None:
    fake = gateway(SERVED | {"text": ANSWERED})
    body = (await fake.http.post("/v1/chat/completions", json=BODY)).json()
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "one", "refusal": None, "reasoning_content": "hm"},
         "logprobs": {"content": [OPENAI_TOKEN], "refusal": None}, "finish_reason": "length"},
        {"index": 1, "message": {"role": "assistant", "content": "two", "refusal": None}, "logprobs": None, "finish_reason": "stop"},
    ]  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12} | DETAILS


async def test_stream_tells_answers_apart(gateway: OpenFakeGateway) -> None:
    """Each begins with its role and ends with its own reason."""
    fake = gateway(SERVED | {"text": ANSWERED | {"deltas": 3}})
    fake.publisher.deltas["text"] = DELTAS
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = data_of((await fake.http.post("/v1/chat/completions", json=body)).text)
    by_index = {index: [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index] for index in (0, 1)}
    assert [[choice["delta"] for choice in by_index[index]] for index in (0, 1)] == [
        [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "one"}, {}],
        [{"role": "assistant", "content": ""}, {"content": "two"}, {}],
    ]
    assert [choice["logprobs"] for choice in by_index[0]] == [None, None, {"content": [OPENAI_TOKEN], "refusal": None}, None]
    assert [by_index[index][-1]["finish_reason"] for index in (0, 1)] == ["length", "stop"]
    assert (usage["choices"], usage["usage"]["prompt_tokens_details"], done) == ([], {"cached_tokens": 4}, "[DONE]")


async def test_answer_without_a_delta_has_a_role(gateway: OpenFakeGateway) -> None:
    done: dict[str, Any] = DONE | {"response": "", "deltas": 0}
    response = await gateway(SERVED | {"text": done}).http.post("/v1/chat/completions", json=BODY | {"n": 1, "stream": True})
    *chunks, _ = data_of(response.text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]
