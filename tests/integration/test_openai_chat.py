"""Chat completions through the official OpenAI client, on a real broker with a fake text actor."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image
from pydantic import BaseModel

from bus.settings import BusSettings
from contracts.text import Text
from tests.support.broker_client import StartWorker
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.fake_text_actor import FakeTextActor
from tests.support.live_gateway import live_gateway, official_client


@pytest.fixture
def text_actor() -> FakeTextActor:
    return FakeTextActor()


@pytest.fixture
async def client(bus_settings: BusSettings, store_folder: Path, purged_queues: None) -> AsyncIterator[AsyncOpenAI]:
    limits = {"request_seconds": 20, "max_upload_bytes": 50_000}
    async with live_gateway(bus_settings, store_folder, **limits) as url, official_client(url) as client:
        yield client


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def data_url() -> str:
    with io.BytesIO() as file:
        Image.new("RGB", (40, 40), "red").save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def test_served_models_are_listed(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """Only models whose actors are consuming."""
    assert [model.id async for model in client.models.list()] == []
    async with start_worker(*text_actor.actors, FAKE_IMAGE_ACTOR):
        await asyncio.sleep(1.1)
        assert [model.id async for model in client.models.list()] == ["tiny", "bistro", "image"]
        assert (await client.models.retrieve("bistro")).id == "bistro"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_chat_returns_answer_and_usage(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """Every parameter reaches the actor; the others have OpenAI's defaults."""
    async with start_worker(*text_actor.actors):
        messages: Any = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "one two"}]}]
        answer = await client.chat.completions.create(
            model="bistro", messages=messages, max_tokens=7, stop="end", seed=5, frequency_penalty=0.5, top_p=0.8
        )  # fmt: skip
        await client.chat.completions.create(model="text", messages=user("hello"))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason, answer.model) == ("two one", "stop", "bistro")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 5, 12)
    full, plain = text_actor.commands
    assert full.messages is not None
    assert [message.role for message in full.messages] == ["system", "user"]
    assert (full.max_tokens, full.stop, full.seed, full.frequency_penalty, full.top_p) == (7, ["end"], 5, 0.5, 0.8)
    assert (full.lora_adapter, plain.lora_adapter) == ("bistro", None)
    assert (plain.temperature, plain.top_p, plain.repetition_penalty, plain.max_tokens) == (1.0, 1.0, 1.0, None)


async def test_stream_is_ordered_and_ends_with_usage(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    async with start_worker(*text_actor.actors):
        stream = await client.chat.completions.create(
            model="tiny", messages=user("three two one"), stream=True, stream_options={"include_usage": True}
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert deltas == ["", "one ", "two ", "three", None]
    assert (chunks[0].choices[0].delta.role, chunks[-2].choices[0].finish_reason) == ("assistant", "stop")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


async def test_stream_gap_is_error(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    async with start_worker(*text_actor.actors):
        stream = await client.chat.completions.create(model="tiny", messages=user("gap two three"), stream=True)
        deltas = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError, match="delta 1 was expected"):
            await anext(stream)
    assert deltas == ["", "three "]


async def test_closed_stream_cancels_generation(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    async with start_worker(*text_actor.actors):
        stream = await client.chat.completions.create(model="tiny", messages=user("endless"), stream=True)
        async for _ in stream:
            break
        assert not text_actor.cancelled.is_set()
        await stream.close()
        await asyncio.wait_for(text_actor.cancelled.wait(), 5)
    assert text_actor.cancelled.is_set()


async def test_images_are_passed_as_claims_or_urls(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    parts = [
        {"type": "text", "text": "what"},
        {"type": "image_url", "image_url": {"url": data_url()}},
        {"type": "image_url", "image_url": {"url": "https://media.example/table.jpg", "detail": "low"}},
    ]
    async with start_worker(*text_actor.actors):
        await client.chat.completions.create(model="tiny", messages=user(parts))
    images = pictures(text_actor.commands[0])
    assert images[0].claim is not None
    assert images[0].claim.media_type == "image/png"
    assert (images[1].url, images[1].claim) == ("https://media.example/table.jpg", None)


def pictures(command: Text) -> list[Any]:
    assert command.messages is not None
    content = command.messages[0].content
    assert not isinstance(content, str)
    return [part.picture for part in content if part.picture]


class Dish(BaseModel):
    a: int


async def test_response_format_constrains_answer(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """The client turns a class into a schema, and the answer into an instance."""
    async with start_worker(*text_actor.actors):
        parsed = await client.chat.completions.parse(model="tiny", messages=user("x"), response_format=Dish)
        plain = await client.chat.completions.create(model="tiny", messages=user("x"), response_format={"type": "json_object"})
    assert parsed.choices[0].message.parsed == Dish(a=1)
    assert plain.choices[0].message.content == '{"a": 1}'
    assert text_actor.commands[0].json_schema is not None
    assert text_actor.commands[0].json_schema["properties"]["a"]["type"] == "integer"
    assert text_actor.commands[1].json_only


async def test_prompt_is_continued(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """OpenAI's older completions: several prompts, and a stream."""
    async with start_worker(*text_actor.actors):
        answer = await client.completions.create(model="tiny", prompt=["two one", "b a"], logprobs=0)
        stream = await client.completions.create(model="tiny", prompt="two one", max_tokens=5, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [choice.text for choice in answer.choices] == ["one two", "a b"]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["one ", "two"], [-0.5, -0.5], [0, 4])
    assert ("".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason) == ("one two", "stop")
    assert sorted((command.raw_prompt or "", command.max_tokens or 0) for command in text_actor.commands) == [
        ("b a", 16), ("two one", 5), ("two one", 16),
    ]  # fmt: skip


WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


async def test_tool_is_called_and_its_result_is_read(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """The client's own message is sent back with the result of the call, as an agent does."""
    async with start_worker(*text_actor.actors):
        messages = user("call it")
        message = (await client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])).choices[0].message
        assert message.tool_calls is not None
        call: Any = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        history: Any = [*messages, message, result]
        answer = await client.chat.completions.create(model="tiny", messages=history, tools=[WEATHER], tool_choice="none")
    assert (message.content, call.function.name, call.function.arguments) == (None, "weather", '{"city": "Paris"}')
    assert answer.choices[0].message.content == "degrees 18"
    sent = text_actor.commands[1].messages
    assert sent is not None
    assert [(one.role, [call.id for call in one.tool_calls], one.tool_call_id) for one in sent] == [
        ("user", [], None), ("assistant", ["call_1"], None), ("tool", [], "call_1"),
    ]  # fmt: skip


async def test_helper_of_the_client_joins_a_streamed_call(
    client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor
) -> None:
    """`client.chat.completions.stream` builds the whole message from the parts."""
    async with start_worker(*text_actor.actors), client.chat.completions.stream(
        model="tiny", messages=user("x"), tools=[WEATHER], tool_choice="required", reasoning_effort="low"
    ) as stream:  # fmt: skip
        completion = await stream.get_final_completion()
    choice = completion.choices[0]
    assert choice.message.tool_calls is not None
    assert (choice.finish_reason, choice.message.tool_calls[0].function.arguments) == ("tool_calls", '{"city": "Paris"}')


async def test_several_answers_with_log_probabilities(client: AsyncOpenAI, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    async with start_worker(*text_actor.actors):
        answer = await client.chat.completions.create(
            model="tiny", messages=user("two one"), n=2, logprobs=True, top_logprobs=1, reasoning_effort="high", max_completion_tokens=9
        )  # fmt: skip
        async with client.chat.completions.stream(model="tiny", messages=user("two one"), n=2, logprobs=True) as stream:
            streamed = await stream.get_final_completion()
    for choices in (answer.choices, streamed.choices):
        assert [choice.message.content for choice in choices] == ["one two", "one two"]
        logprobs = choices[1].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [(token.token, token.logprob, token.bytes) for token in logprobs.content] == [
            ("one ", -0.5, list(b"one ")), ("two", -0.5, list(b"two")),
        ]  # fmt: skip
    assert (answer.choices[0].message.model_extra or {})["reasoning_content"] == "hm"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens, answer.usage.completion_tokens_details.reasoning_tokens) == (3, 1)
    assert (text_actor.commands[0].max_tokens, text_actor.commands[0].reasoning_effort) == (9, "high")


@pytest.mark.parametrize(
    ("invalid", "exception", "param", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_request"),
        ({"n": 17}, openai.BadRequestError, "n", "invalid_request"),
        ({"temperature": 9}, openai.BadRequestError, "temperature", "invalid_request"),
        ({"messages": user("fails prompt-too-long")}, openai.BadRequestError, None, "context_length_exceeded"),
        ({"messages": user("fails server-away")}, openai.InternalServerError, None, "server_away"),
        ({"messages": user("fails prompt-too-long"), "stream": True}, openai.BadRequestError, None, "context_length_exceeded"),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])}, openai.BadRequestError,
         "messages.0.content.0.image_url.url", "invalid_image_url"),
    ],
)  # fmt: skip
async def test_errors_map_to_openai_exceptions(
    client: AsyncOpenAI,
    start_worker: StartWorker,
    text_actor: FakeTextActor,
    invalid: dict[str, Any],
    exception: type[openai.APIStatusError],
    param: str,
    code: str,
) -> None:
    async with start_worker(*text_actor.actors):
        with pytest.raises(exception) as raised:
            await client.chat.completions.create(**{"model": "tiny", "messages": user("x")} | invalid)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert ("retry-after" in raised.value.response.headers) is (code == "server_away")


@pytest.mark.usefixtures("purged_queues")
async def test_unavailable_model_returns_503(bus_settings: BusSettings, store_folder: Path) -> None:
    async with live_gateway(bus_settings, store_folder, request_seconds=0.4) as url, official_client(url) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="any", messages=user("x"))
    assert (raised.value.status_code, raised.value.response.headers["retry-after"]) == (503, "5")
