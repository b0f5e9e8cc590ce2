"""The text actor with a real vLLM server: conversations, streams, JSON schemas, batching, cancellation and errors."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from actors import conversations, text
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, RequestClient, open_request_client
from bus.settings import BusSettings
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.external_programs import MAX_MODEL_LEN, VllmServer
from tests.support.webhook_backend import WebhookBackend
from tests.support.worker_processes import WorkerProcesses

pytestmark = pytest.mark.timeout(300)
ACTORS = (*text.ACTORS, *conversations.ACTORS)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
ITERATIONS = "vllm:iteration_tokens_total_count"


@pytest.fixture(autouse=True)
def settings(running_vllm: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", running_vllm.url)
    monkeypatch.setenv("VLLM_MODEL", "not-served")


@pytest.fixture
async def requests(bus_settings: BusSettings) -> AsyncIterator[RequestClient]:
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        yield client


async def ask(requests: RequestClient, message: str, **fields: Any) -> dict[str, Any]:
    return await requests.request("text", {"message": message, "max_tokens": 8} | fields, seconds=60, tenant="t")


def stored_response(answer: dict[str, Any]) -> str:
    """Postgres cannot store NUL, which a random model may generate."""
    return str(answer["response"]).replace("\0", "\ufffd")


async def test_conversation_history_survives_restart(start_worker: StartWorker, requests: RequestClient) -> None:
    """Three turns; the worker restarts between the second and the third. An unknown id gets a new conversation."""
    async with start_worker(*ACTORS):
        first = await ask(requests, "하나", conversation_id="never-seen")
        second = await ask(requests, "둘", conversation_id=first["conversation_id"])
    async with start_worker(*ACTORS):
        third = await ask(requests, "셋", conversation_id=first["conversation_id"])
        stored = await requests.request("conversation.get", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")
        with pytest.raises(ReplyFault, match="conversation-unknown"):
            await requests.request("conversation.get", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="another")
        listed = await requests.request("conversation.list", {}, seconds=10, tenant="t")
        await requests.request("conversation.delete", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")
        with pytest.raises(ReplyFault, match="conversation-unknown"):
            await requests.request("conversation.delete", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")

    assert first["conversation_id"] == second["conversation_id"] == third["conversation_id"] != "never-seen"
    assert first["usage"]["prompt_tokens"] < second["usage"]["prompt_tokens"] < third["usage"]["prompt_tokens"]
    assert [message["content"] for message in stored["messages"][::2]] == ["하나", "둘", "셋"]
    assert [message["content"] for message in stored["messages"][1::2]] == [stored_response(turn) for turn in (first, second, third)]
    assert first["conversation_id"] in [line["conversation_id"] for line in listed["conversations"]]
    assert third["model_info"]["model_name"] == "tiny"
    assert third["model_info"]["timings"]["tokens_generated"] == third["usage"]["completion_tokens"] <= 8


async def test_concurrent_turns_of_conversation_are_serialized(start_worker: StartWorker, requests: RequestClient) -> None:
    """Each question has its own answer, and each prompt is longer than the one before, because it contains all earlier turns."""
    async with start_worker(*ACTORS):
        first = await ask(requests, "0")
        turns = await asyncio.gather(*(ask(requests, str(number), conversation_id=first["conversation_id"]) for number in range(1, 7)))
        stored = await requests.request("conversation.get", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")
    assert [message["role"] for message in stored["messages"]] == ["user", "assistant"] * 7
    contents = [message["content"] for message in stored["messages"]]
    questions, responses = contents[::2], contents[1::2]
    assert sorted(questions) == [str(number) for number in range(7)]
    answers = [first, *turns]
    assert responses == [stored_response(answers[int(number)]) for number in questions]
    prompts = [answers[int(number)]["usage"]["prompt_tokens"] for number in questions]
    assert prompts == sorted(set(prompts))


@pytest.mark.parametrize("point", ["before-handle", "before-mark-done", "before-publish", "before-ack"])
async def test_turn_of_killed_process_is_stored_once(
    start_worker: StartWorker,
    requests: RequestClient,
    bus_settings: BusSettings,
    running_vllm: VllmServer,
    broker_client: BrokerClient,
    tmp_path: Path,
    point: str,
) -> None:
    """SIGKILL at any point between the delivery and its ack: the next process answers, and the conversation has the turn once."""
    environment = {"VLLM_SERVER_URL": running_vllm.url, "AMQP_URL": bus_settings.broker_url, "STORE_URL": tmp_path.as_uri()}
    assert bus_settings.database_url
    environment |= {"DATABASE_URL": bus_settings.database_url.get_secret_value()}
    worker_processes = WorkerProcesses(os.environ | environment, tmp_path, WebhookBackend(), broker_client)
    async with worker_processes.start_process("text", crash_point=point, marker_file=tmp_path / "died") as killed_process:
        answer_task = asyncio.create_task(ask(requests, "once"))
        assert await asyncio.wait_for(killed_process.wait(), 60) == -9
    async with start_worker(*ACTORS):
        answer = await answer_task
        query = {"conversation_id": answer["conversation_id"]}
        stored = await requests.request("conversation.get", query, seconds=10, tenant="t")
        listed = await requests.request("conversation.list", {}, seconds=10, tenant="t")
    assert [message["content"] for message in stored["messages"]] == ["once", stored_response(answer)]
    assert [line["conversation_id"] for line in listed["conversations"]].count(answer["conversation_id"]) == 1


async def test_history_over_context_is_trimmed_by_turns(start_worker: StartWorker, requests: RequestClient) -> None:
    """Each turn has about 200 tokens, the context 512."""
    async with start_worker(*ACTORS):
        turn = await ask(requests, "a" * 190)
        prompts = [turn["usage"]["prompt_tokens"]]
        for _ in range(3):
            turn = await ask(requests, "b" * 190, conversation_id=turn["conversation_id"])
            prompts.append(turn["usage"]["prompt_tokens"])
    assert prompts[0] < prompts[1] <= MAX_MODEL_LEN - 8
    assert all(prompts[0] < prompt <= MAX_MODEL_LEN - 8 for prompt in prompts[1:])


async def test_concurrent_requests_share_batch(start_worker: StartWorker, requests: RequestClient, running_vllm: VllmServer) -> None:
    """The engine counts its iterations: without batching each would generate one token only."""
    before = running_vllm.metric(ITERATIONS)
    async with start_worker(*ACTORS):
        done = await asyncio.gather(*(ask(requests, f"{number}", max_tokens=300, temperature=1.5) for number in range(16)))
        status = await requests.request("text.status", {}, seconds=10)
    generated = sum(answer["usage"]["completion_tokens"] for answer in done)
    assert generated / (running_vllm.metric(ITERATIONS) - before) > 2
    assert status["tokens_generated"] >= generated
    assert (status["engine"], status["model_name"], status["max_model_len"]) == ("openai", "tiny", MAX_MODEL_LEN)


async def test_streamed_text_equals_result(start_worker: StartWorker, requests: RequestClient) -> None:
    body = {"message": "stream", "max_tokens": 64, "stream": True, "seed": 5}
    async with start_worker(*ACTORS):
        chunks = [chunk async for chunk in requests.stream("text", body, seconds=60)]
    deltas, final = chunks[:-1], chunks[-1].body
    assert len(deltas) > 1
    assert "".join(chunk.body["delta"] for chunk in deltas) == final["response"]
    assert final["model_info"]["timings"]["first_token_ms"] <= final["model_info"]["timings"]["generation_ms"]


async def test_json_schema_constrains_answer(start_worker: StartWorker, requests: RequestClient) -> None:
    """The model generates random text; only constrained decoding can give this answer."""
    async with start_worker(*ACTORS):
        answers = await asyncio.gather(*(ask(requests, "?", json_schema=SCHEMA, max_tokens=64, temperature=2.0) for _ in range(4)))
    assert all(isinstance(answer["response_json"]["ok"], bool) and answer["response_is_json"] for answer in answers)
    assert all(set(json.loads(answer["response"])) == {"ok"} for answer in answers)


async def test_cancelled_request_frees_engine(start_worker: StartWorker, requests: RequestClient, running_vllm: VllmServer) -> None:
    """And the turn is not stored."""

    async def idle() -> bool:
        return await asyncio.to_thread(running_vllm.metric, "vllm:num_requests_running") == 0

    body = {"message": "go on", "max_tokens": 480, "stream": True, "repetition_penalty": 1.0}
    async with start_worker(*ACTORS):
        before = running_vllm.metric("vllm:generation_tokens_total")
        async with aclosing(requests.stream("text", body, seconds=60, tenant="cancelling")) as chunks:
            async for chunk in chunks:
                if chunk.body.get("sequence") == 2:
                    break
        await wait_until(idle, 10)
        listed = await requests.request("conversation.list", {}, seconds=10, tenant="cancelling")
    assert running_vllm.metric("vllm:generation_tokens_total") - before < 400
    assert listed["total_conversations"] == 0


async def test_prompt_over_context_is_rejected_with_limits(start_worker: StartWorker, requests: RequestClient) -> None:
    async with start_worker(*ACTORS):
        with pytest.raises(ReplyFault) as raised:
            await ask(requests, "x" * 600)
    assert raised.value.fault.code == "prompt-too-long"
    assert "512" in raised.value.fault.message
    assert "61" in raised.value.fault.message


async def test_unavailable_server_is_retried_until_deadline(
    start_worker: StartWorker, requests: RequestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", "http://127.0.0.1:9/v1")
    loop = asyncio.get_running_loop()
    async with start_worker(*ACTORS):
        started = loop.time()
        with pytest.raises(ReplyFault) as raised:
            await requests.request("text", {"message": "x"}, seconds=3)
    assert raised.value.fault.code == "server-away"
    assert 1 < loop.time() - started < 3
