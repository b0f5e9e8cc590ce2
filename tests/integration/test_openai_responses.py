"""Responses through the official OpenAI client, on a real broker and a real database, with an engine whose answers the tests write."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import openai
import pytest
from openai.types.responses import Response
from PIL import Image
from pydantic import BaseModel

from actors.engines.language.requests import GenerationChunk, PromptTooLong
from bus.errors import EngineCrashed, PermanentError, TemporaryError
from bus.settings import BusSettings
from contracts.text import TokenLogprob, ToolCallDelta
from tests.support.broker_client import StartWorker, wait_until
from tests.support.live_gateway import live_gateway, official_client
from tests.support.response_workers import RESPONSE_ACTORS, ScriptedEngine, purge_response_queues, use_engine, words

TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
OfficialClient = Any  # AsyncOpenAI, whose items are unions of dozens of types
KEYS = "alice:alice-key-0123456789abcdef bob:bob-key-0123456789abcdef"


@pytest.fixture
async def gateway(bus_settings: BusSettings, store_folder: Path, amqp_url: str) -> AsyncIterator[str]:
    await purge_response_queues(amqp_url)
    async with live_gateway(bus_settings, store_folder, request_seconds=20) as url:
        yield url


@pytest.fixture
async def client(gateway: str) -> AsyncIterator[OfficialClient]:
    async with official_client(gateway) as client:
        yield client


async def wait_for_status(client: OfficialClient, response_id: str, *statuses: str) -> Response:
    """The response, once it has one of the statuses."""
    found: list[Response] = []

    async def has_status() -> bool:
        found.append(await client.responses.retrieve(response_id))
        return found[-1].status in statuses

    await wait_until(has_status)
    return found[-1]


async def wait_for_requests(engine: ScriptedEngine, count: int) -> None:
    """Until so many have reached the engine."""
    await wait_until(lambda: asyncio.sleep(0, len(engine.requests) >= count), 20)


async def test_response_has_openai_fields(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use_engine(monkeypatch, lambda _: words("one two three"))
    async with start_worker(*RESPONSE_ACTORS):
        response = await client.responses.create(
            model="text", input="hello", instructions="Be short.", max_output_tokens=20, temperature=0.5, metadata={"a": "b"}
        )
        stored = await client.responses.retrieve(response.id)
    assert (response.output_text, response.status, response.error) == ("one two three", "completed", None)
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert (response.metadata, response.instructions) == ({"a": "b"}, "Be short.")
    assert (response.temperature, response.max_output_tokens) == (0.5, 20)
    assert stored == response
    Response.model_validate(response.model_dump(mode="json"))
    assert engine.requests[0].messages == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    assert (engine.requests[0].max_tokens, engine.requests[0].temperature) == (20, 0.5)


async def test_stream_has_semantic_events(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, lambda _: words("one two three", pause=0.1))
    async with start_worker(*RESPONSE_ACTORS), client.responses.stream(model="text", input="hello") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    opening = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    closing = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert (types[:4], types[-4:]) == (opening, closing)
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "one two three" == final.output_text


async def test_conversation_is_continued(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of earlier responses precede the input; their instructions do not. One that is not stored is unknown afterwards."""
    engine = use_engine(monkeypatch, lambda request: words(f"answer {len(request.messages)}"))
    async with start_worker(*RESPONSE_ACTORS):
        first = await client.responses.create(model="text", input="a", instructions="Be short.")
        second = await client.responses.create(model="text", input="b", previous_response_id=first.id)
        third = await client.responses.create(model="text", input="c", previous_response_id=second.id, store=False)
        with pytest.raises(openai.BadRequestError, match=f"Previous response with id '{third.id}' not found") as raised:
            await client.responses.create(model="text", input="d", previous_response_id=third.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(third.id)
        reference: Any = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "e"}]
        await client.responses.create(model="text", input=reference)
        with pytest.raises(openai.BadRequestError, match="Item with id 'msg_x' not found"):
            await client.responses.create(model="text", input=[{"type": "item_reference", "id": "msg_x"}])
    assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")
    assert [message["content"] for message in engine.requests[2].messages] == ["a", "answer 2", "b", "answer 3", "c"]
    assert [message["role"] for message in engine.requests[3].messages] == ["assistant", "user"]


async def test_functions_are_called_and_answered(
    client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of our response is the input of the next request, as the client has it. Reasoning is returned, and comes back."""

    def call(request: Any) -> list[Any]:
        if any(message["role"] == "tool" for message in request.messages):
            return words("It is sunny.")
        part = ToolCallDelta(index=0, id="call_1", name="weather", arguments='{"city": ')
        rest = ToolCallDelta(index=0, arguments='"Seoul"}')
        return [
            GenerationChunk("", 1, reasoning="Let me "),
            GenerationChunk("", 2, reasoning="look."),
            GenerationChunk("", 3, tool_calls=(part,)),
            0.1,
            GenerationChunk("", 4, tool_calls=(rest,)),
            GenerationChunk("", 4, "tool_calls", 9, reasoning_tokens=2),
        ]

    engine = use_engine(monkeypatch, call)
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]}
    async with start_worker(*RESPONSE_ACTORS):
        stream = await client.responses.create(model="text", input=[question], tools=[TOOL], stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.completed"
        response = events[-1].response
        reasoning, function_call = response.output
        assert (reasoning.type, function_call.type) == ("reasoning", "function_call")
        assert (function_call.name, function_call.arguments, function_call.call_id) == ("weather", '{"city": "Seoul"}', "call_1")
        result = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
        items = [question, *(item.model_dump() for item in response.output), result]
        answers = [
            await client.responses.create(model="text", input=items, tools=[TOOL]),
            await client.responses.create(model="text", input=[result], tools=[TOOL], previous_response_id=response.id),
        ]
        with pytest.raises(openai.BadRequestError, match="No tool call found for function call output with call_id 'call_2'"):
            await client.responses.create(model="text", input=[result | {"call_id": "call_2"}])
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == function_call.arguments
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "Let me look."
    assert [answer.output_text for answer in answers] == ["It is sunny."] * 2
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert engine.requests[1].messages == engine.requests[2].messages
    assistant, tool = engine.requests[1].messages[1:]
    assert (assistant["reasoning_content"], assistant["tool_calls"][0]["function"]["name"]) == ("Let me look.", "weather")
    assert (tool["role"], tool["tool_call_id"], tool["content"]) == ("tool", "call_1", "sunny")


async def test_parameters_reach_the_engine(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    token = TokenLogprob.model_validate({"text": "{}", "logprob": -0.5, "top": [{"text": "[]", "logprob": -1.5}]})
    json_answer = [GenerationChunk('{"city": "x"}', 1, logprobs=(token,)), GenerationChunk("", 1, "stop", 3)]
    call = GenerationChunk("", 1, tool_calls=(ToolCallDelta(index=0, id="call_1", name="weather", arguments="{}"),))
    engine = use_engine(monkeypatch, lambda request: [call, GenerationChunk("", 1, "tool_calls", 3)] if request.tools else json_answer)

    class City(BaseModel):
        city: str

    async with start_worker(*RESPONSE_ACTORS):
        response = await client.responses.parse(
            model="text", input="x", text_format=City, top_p=0, include=["message.output_text.logprobs"], top_logprobs=1,
            reasoning={"effort": "low"}, parallel_tool_calls=False, max_output_tokens=50,
        )  # fmt: skip
        await client.responses.create(model="text", input="x", tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
    request, choice = engine.requests
    assert response.output_parsed == City(city="x")
    assert (request.logprobs, request.reasoning_effort, request.parallel_tool_calls) == (1, "low", False)
    assert request.schema is not None
    assert 0 < request.top_p < 0.001
    assert (choice.tool_name, choice.tools[0]["function"]["name"]) == ("weather", "weather")
    text = response.output[0].content[0]
    assert text.logprobs[0].top_logprobs[0].token == "[]"
    assert text.logprobs[0].bytes == [123, 125]


async def test_limit_makes_response_incomplete(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, lambda _: words("one two", finish="length"))
    async with start_worker(*RESPONSE_ACTORS):
        response = await client.responses.create(model="text", input="x", max_output_tokens=2)
        events = [event async for event in await client.responses.create(model="text", input="x", stream=True)]
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[0].status) == ("one two", "incomplete")
    assert (events[-1].type, events[-2].item.status) == ("response.incomplete", "incomplete")


async def test_failures_are_errors_of_the_api(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits gets the status of the fault; streams and stored responses have the error in the response."""
    use_engine(monkeypatch, lambda _: [PermanentError("server-refused", "no such thing")])
    async with start_worker(*RESPONSE_ACTORS):
        with pytest.raises(openai.BadRequestError, match="no such thing"):
            await client.responses.create(model="text", input="x")
        events = [event async for event in await client.responses.create(model="text", input="x", stream=True)]
        waiting = await client.responses.create(model="text", input="x", background=True)
        failed: Any = await wait_for_status(client, waiting.id, "failed")
    assert [event.type for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1].response.error.message == "no such thing" == failed.error.message


@pytest.mark.parametrize("error", [TemporaryError("busy"), EngineCrashed("the process died")])
async def test_interrupted_run_continues(
    error: Exception, client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run writes the same text: what was sent is not sent twice."""
    runs = iter([[*words("one two three", pause=0.06)[:4], error], words("one two three four")])
    engine = use_engine(monkeypatch, lambda _: next(runs))
    async with start_worker(*RESPONSE_ACTORS):
        events = [event async for event in await client.responses.create(model="text", input="x", stream=True)]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert ("".join(deltas), events[-1].type) == ("one two three four", "response.completed")
    assert "".join(deltas).startswith(deltas[0])
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events].count("response.in_progress") == 1
    assert engine.requests[0].seed == engine.requests[1].seed is not None


async def test_run_that_writes_another_text_fails(
    client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter([[*words("one two three", pause=0.06)[:4], TemporaryError("busy")], words("something else")])
    use_engine(monkeypatch, lambda _: next(runs))
    async with start_worker(*RESPONSE_ACTORS):
        events = [event async for event in await client.responses.create(model="text", input="x", stream=True)]
    assert events[-1].type == "response.failed"
    assert "would not continue the answer" in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_truncation_drops_the_oldest_turns(
    client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(request: Any) -> list[Any]:
        return [PromptTooLong(90, 60)] if len(request.messages) > 2 else words("short")

    engine = use_engine(monkeypatch, limited)
    turns: Any = [{"role": role, "content": f"{role} {number}" * 9} for number in range(3) for role in ("user", "assistant")]
    question = [*turns, {"role": "user", "content": "last"}]
    async with start_worker(*RESPONSE_ACTORS):
        with pytest.raises(openai.BadRequestError, match="90 tokens"):
            await client.responses.create(model="text", input=question, instructions="i")
        answer = await client.responses.create(model="text", input=question, instructions="i", truncation="auto")
    assert answer.output_text == "short"
    assert [message["content"] for message in engine.requests[-1].messages] == ["i", "last"]


async def test_background_response_is_cancelled(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine stops; what was written is kept; a second cancellation, and a stream, see the end."""
    engine = use_engine(monkeypatch, lambda _: words("on " * 500, pause=0.03))
    async with start_worker(*RESPONSE_ACTORS):
        response = await client.responses.create(model="text", input="x", background=True)
        assert response.status == "queued"
        stream = await client.responses.retrieve(response.id, stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        with pytest.raises(openai.BadRequestError, match="is in_progress"):
            await client.responses.create(model="text", input="y", previous_response_id=response.id)
        cancelled = await client.responses.cancel(response.id)
        rest = [event async for event in stream]
        await asyncio.wait_for(engine.cancelled.wait(), 20)
        again = await client.responses.cancel(response.id)
        events = [event async for event in await client.responses.retrieve(response.id, stream=True)]
    assert (cancelled.status, again) == ("cancelled", cancelled)
    assert cancelled.output_text.startswith("on ")
    assert rest[-1].type == "response.cancelled" == events[-1].type
    assert [event.type for event in events][:2] == ["response.created", "response.queued"]
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_closed_connection_cancels(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a response in the background. One in the foreground cannot be cancelled otherwise."""
    may_end = asyncio.Event()
    engine = use_engine(monkeypatch, lambda _: words("on " * 20, waits={10: may_end}))
    async with start_worker(*RESPONSE_ACTORS):
        stream = await client.responses.create(model="text", input="x", stream=True)
        first = await anext(aiter(stream))
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await client.responses.cancel(first.response.id)
        await wait_for_requests(engine, 1)
        await stream.close()
        await asyncio.wait_for(engine.cancelled.wait(), 20)
        assert (await wait_for_status(client, first.response.id, "cancelled")).status == "cancelled"
        engine.cancelled.clear()
        call = asyncio.create_task(client.responses.create(model="text", input="x"))
        await wait_for_requests(engine, 2)
        call.cancel()
        await asyncio.wait_for(engine.cancelled.wait(), 20)
        background = await client.responses.create(model="text", input="x", background=True, stream=True)
        created = await anext(aiter(background))
        await background.close()
        may_end.set()
        assert (await wait_for_status(client, created.response.id, "completed")).output_text.startswith("on on")


async def test_deleted_response_is_unknown(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use_engine(monkeypatch, lambda _: words("on " * 500, pause=0.03))
    async with start_worker(*RESPONSE_ACTORS):
        response = await client.responses.create(model="text", input="x", background=True)
        await wait_for_status(client, response.id, "in_progress")
        await client.responses.delete(response.id)
        await asyncio.wait_for(engine.cancelled.wait(), 20)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError, match="not found"):
                await call(response.id)


async def test_input_items_are_listed_in_pages(client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, lambda _: words("fine"))
    items: Any = [{"role": "user", "content": f"message {number}"} for number in range(5)]
    async with start_worker(*RESPONSE_ACTORS):
        response = await client.responses.create(model="text", input=items)
        ascending = [item async for item in client.responses.input_items.list(response.id, order="asc", limit=2)]
        descending = [item async for item in client.responses.input_items.list(response.id, limit=3)]
        with pytest.raises(openai.BadRequestError, match="after: Item with id"):
            await client.responses.input_items.list(response.id, after="msg_x")
    assert [item.content[0].text for item in ascending] == [f"message {number}" for number in range(5)]
    assert descending == ascending[::-1]


async def test_pictures_reach_the_engine_and_stay_in_the_conversation(
    client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are stored once, as claims; the list of items does not repeat their bytes."""
    engine = use_engine(monkeypatch, lambda _: words("a red square"))
    with io.BytesIO() as file:
        Image.new("RGB", (40, 40), "red").save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": url, "detail": "low"}]
    async with start_worker(*RESPONSE_ACTORS):
        first = await client.responses.create(model="text", input=[{"role": "user", "content": content}])
        await client.responses.create(model="text", input="and its colour?", previous_response_id=first.id)
        (item,) = [item async for item in client.responses.input_items.list(first.id)]
    assert [part["type"] for part in engine.requests[0].messages[0]["content"]] == ["text", "image_url"]
    assert engine.requests[1].messages[0] == engine.requests[0].messages[0]
    assert (item.content[1].type, item.content[1].detail, item.content[1].image_url) == ("input_image", "low", None)


async def test_tenants_see_their_own(
    bus_settings: BusSettings, store_folder: Path, amqp_url: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await purge_response_queues(amqp_url)
    use_engine(monkeypatch, lambda _: words("secret"))
    async with (
        live_gateway(bus_settings, store_folder, api_keys=KEYS) as url,
        official_client(url, api_key="alice-key-0123456789abcdef") as alice_client,
        official_client(url, api_key="bob-key-0123456789abcdef") as bob_client,
        start_worker(*RESPONSE_ACTORS),
    ):
        alice: OfficialClient = alice_client
        bob: OfficialClient = bob_client
        response = await alice.responses.create(model="text", input="x")
        for call in (bob.responses.retrieve, bob.responses.delete, bob.responses.cancel, bob.responses.input_items.list):
            with pytest.raises(openai.NotFoundError, match="not found"):
                await call(response.id)
        with pytest.raises(openai.NotFoundError):
            await bob.responses.retrieve(response.id, stream=True)
        with pytest.raises(openai.BadRequestError, match="Previous response"):
            await bob.responses.create(model="text", input="x", previous_response_id=response.id)
        with pytest.raises(openai.BadRequestError, match="Item with id"):
            await bob.responses.create(model="text", input=[{"type": "item_reference", "id": response.output[0].id}])
        assert (await alice.responses.retrieve(response.id)).output_text == "secret"


async def test_unstored_response_leaves_nothing(
    gateway: str, client: OfficialClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """Neither its text nor its question is in the database, in any table."""
    use_engine(monkeypatch, lambda _: words("ephemeral answer"))
    async with start_worker(*RESPONSE_ACTORS):
        await client.responses.create(model="text", input="ephemeral question", store=False)
        events = [
            event async for event in await client.responses.create(model="text", input="ephemeral question", store=False, stream=True)
        ]
        assert events[-1].type == "response.completed"
        async with httpx.AsyncClient(base_url=gateway) as http:
            refused = await http.post("/v1/responses", json={"model": "text", "input": "x", "store": False, "background": True})
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch("select table_name from information_schema.tables where table_schema = 'atelier'")
        counts = {
            name: await connection.fetchval(f"select count(*) from atelier.{name} t where t::text like '%ephemeral%'") for (name,) in tables
        }
    finally:
        await connection.close()
    assert {name: count for name, count in counts.items() if count} == {}
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")
