"""The writing actor with the real vLLM behind it: conversations, streams, held forms, a shared batch, and what goes wrong."""

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
from tests.integration.test_image_order import WorkerProcesses
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.external_programs import MAX_MODEL_LEN, VllmServer
from tests.support.webhook_backend import WebhookBackend

pytestmark = pytest.mark.timeout(300)
ACTORS = (*text.ACTORS, *conversations.ACTORS)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
PASSES = "vllm:iteration_tokens_total_count"


@pytest.fixture(autouse=True)
def settings(running_vllm: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", running_vllm.url)
    monkeypatch.setenv("VLLM_MODEL", "not-served")


@pytest.fixture
async def requests(bus_settings: BusSettings) -> AsyncIterator[RequestClient]:
    async with open_publisher(bus_settings) as outbox, open_request_client(outbox) as opened:
        yield opened


async def ask(requests: RequestClient, message: str, **more: Any) -> dict[str, Any]:
    return await requests.request("text", {"message": message, "max_tokens": 8} | more, seconds=60, tenant=more.pop("tenant", "t"))


def as_kept(answer: dict[str, Any]) -> str:
    """Postgres keeps no NUL, which noise may hold."""
    return str(answer["response"]).replace("\0", "\ufffd")


async def test_conversation_history_survives_restart(start_worker: StartWorker, requests: RequestClient) -> None:
    """Three turns; the actor begins anew between the second and the third. An unknown id gets a new conversation."""
    async with start_worker(*ACTORS):
        first = await ask(requests, "하나", conversation_id="never-seen")
        second = await ask(requests, "둘", conversation_id=first["conversation_id"])
    async with start_worker(*ACTORS):
        third = await ask(requests, "셋", conversation_id=first["conversation_id"])
        kept = await requests.request("conversation.get", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")
        with pytest.raises(ReplyFault, match="conversation-unknown"):
            await requests.request("conversation.get", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="another")
        listed = await requests.request("conversation.list", {}, seconds=10, tenant="t")
        await requests.request("conversation.delete", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")
        with pytest.raises(ReplyFault, match="conversation-unknown"):
            await requests.request("conversation.delete", {"conversation_id": first["conversation_id"]}, seconds=10, tenant="t")

    assert first["conversation_id"] == second["conversation_id"] == third["conversation_id"] != "never-seen"
    assert first["usage"]["prompt_tokens"] < second["usage"]["prompt_tokens"] < third["usage"]["prompt_tokens"]
    assert [said["content"] for said in kept["messages"][::2]] == ["하나", "둘", "셋"]
    assert [said["content"] for said in kept["messages"][1::2]] == [as_kept(turn) for turn in (first, second, third)]
    assert first["conversation_id"] in [line["conversation_id"] for line in listed["conversations"]]
    assert third["model_info"]["model_name"] == "tiny"
    assert third["model_info"]["timings"]["tokens_generated"] == third["usage"]["completion_tokens"] <= 8


async def test_concurrent_turns_of_conversation_are_serialized(start_worker: StartWorker, requests: RequestClient) -> None:
    """Each question with its own answer, each prompt longer than the one before it: it knew all that was kept by then."""
    async with start_worker(*ACTORS):
        begun = await ask(requests, "0")
        turns = await asyncio.gather(*(ask(requests, str(number), conversation_id=begun["conversation_id"]) for number in range(1, 7)))
        kept = await requests.request("conversation.get", {"conversation_id": begun["conversation_id"]}, seconds=10, tenant="t")
    assert [said["role"] for said in kept["messages"]] == ["user", "assistant"] * 7
    asked, answered = [said["content"] for said in kept["messages"][::2]], [said["content"] for said in kept["messages"][1::2]]
    assert sorted(asked) == [str(number) for number in range(7)]
    known = [begun, *turns]
    assert answered == [as_kept(known[int(number)]) for number in asked]
    prompts = [known[int(number)]["usage"]["prompt_tokens"] for number in asked]
    assert prompts == sorted(set(prompts))


@pytest.mark.parametrize("point", ["before-handle", "before-remember", "before-publish", "before-ack"])
async def test_turn_of_killed_process_is_stored_once(
    start_worker: StartWorker,
    requests: RequestClient,
    bus_settings: BusSettings,
    running_vllm: VllmServer,
    broker_client: BrokerClient,
    tmp_path: Path,
    point: str,
) -> None:
    """kill -9 anywhere between the delivery and its ack: the next process answers, and the conversation has the turn once."""
    told = {"VLLM_SERVER_URL": running_vllm.url, "AMQP_URL": bus_settings.broker_url, "STORE_URL": tmp_path.as_uri()}
    assert bus_settings.database_url
    told |= {"DATABASE_URL": bus_settings.database_url.get_secret_value()}
    yard = WorkerProcesses(os.environ | told, tmp_path, WebhookBackend(), broker_client)
    async with yard.start_process("text", crash_point=point, marker_file=tmp_path / "died") as victim:
        asking = asyncio.create_task(ask(requests, "once"))
        assert await asyncio.wait_for(victim.wait(), 60) == -9
    async with start_worker(*ACTORS):
        answer = await asking
        named = {"conversation_id": answer["conversation_id"]}
        kept = await requests.request("conversation.get", named, seconds=10, tenant="t")
        listed = await requests.request("conversation.list", {}, seconds=10, tenant="t")
    assert [said["content"] for said in kept["messages"]] == ["once", as_kept(answer)]
    assert [line["conversation_id"] for line in listed["conversations"]].count(answer["conversation_id"]) == 1


async def test_history_over_context_is_trimmed_by_turns(start_worker: StartWorker, requests: RequestClient) -> None:
    """Each turn has some 200 tokens, the context 512."""
    async with start_worker(*ACTORS):
        turn = await ask(requests, "a" * 190)
        prompts = [turn["usage"]["prompt_tokens"]]
        for _ in range(3):
            turn = await ask(requests, "b" * 190, conversation_id=turn["conversation_id"])
            prompts.append(turn["usage"]["prompt_tokens"])
    assert prompts[0] < prompts[1] <= MAX_MODEL_LEN - 8
    assert all(prompts[0] < prompt <= MAX_MODEL_LEN - 8 for prompt in prompts[1:])


async def test_concurrent_requests_share_batch(start_worker: StartWorker, requests: RequestClient, running_vllm: VllmServer) -> None:
    """The engine counts its own passes: each would make one token only, if they took turns."""
    before = running_vllm.metric(PASSES)
    async with start_worker(*ACTORS):
        done = await asyncio.gather(*(ask(requests, f"{number}", max_tokens=300, temperature=1.5) for number in range(16)))
        status = await requests.request("text.status", {}, seconds=10)
    written = sum(answer["usage"]["completion_tokens"] for answer in done)
    assert written / (running_vllm.metric(PASSES) - before) > 2
    assert status["tokens_generated"] >= written
    assert (status["engine"], status["model_name"], status["max_model_len"]) == ("openai", "tiny", MAX_MODEL_LEN)


async def test_streamed_text_equals_result(start_worker: StartWorker, requests: RequestClient) -> None:
    body = {"message": "stream", "max_tokens": 64, "stream": True, "seed": 5}
    async with start_worker(*ACTORS):
        pieces = [piece async for piece in requests.stream("text", body, seconds=60)]
    deltas, final = pieces[:-1], pieces[-1].body
    assert len(deltas) > 1
    assert "".join(piece.body["delta"] for piece in deltas) == final["response"]
    assert final["model_info"]["timings"]["first_token_ms"] <= final["model_info"]["timings"]["generation_ms"]


async def test_json_schema_constrains_answer(start_worker: StartWorker, requests: RequestClient) -> None:
    """The model says nothing but noise; only the decoder can make it say this."""
    async with start_worker(*ACTORS):
        answers = await asyncio.gather(*(ask(requests, "?", json_schema=SCHEMA, max_tokens=64, temperature=2.0) for _ in range(4)))
    assert all(isinstance(answer["response_json"]["ok"], bool) and answer["response_is_json"] for answer in answers)
    assert all(set(json.loads(answer["response"])) == {"ok"} for answer in answers)


async def test_cancelled_request_frees_engine(start_worker: StartWorker, requests: RequestClient, running_vllm: VllmServer) -> None:
    """And the turn is not kept: the conversation is as it was."""

    async def idle() -> bool:
        return await asyncio.to_thread(running_vllm.metric, "vllm:num_requests_running") == 0

    body = {"message": "go on", "max_tokens": 480, "stream": True, "repetition_penalty": 1.0}
    async with start_worker(*ACTORS):
        before = running_vllm.metric("vllm:generation_tokens_total")
        async with aclosing(requests.stream("text", body, seconds=60, tenant="leaver")) as pieces:
            async for piece in pieces:
                if piece.body.get("sequence") == 2:
                    break
        await wait_until(idle, 10)
        listed = await requests.request("conversation.list", {}, seconds=10, tenant="leaver")
    assert running_vllm.metric("vllm:generation_tokens_total") - before < 400
    assert listed["total_conversations"] == 0


async def test_prompt_over_context_is_rejected_with_limits(start_worker: StartWorker, requests: RequestClient) -> None:
    async with start_worker(*ACTORS):
        with pytest.raises(ReplyFault) as refused:
            await ask(requests, "x" * 600)
    assert refused.value.fault.code == "prompt-too-long"
    assert "512" in refused.value.fault.message
    assert "61" in refused.value.fault.message


async def test_unavailable_server_is_retried_until_deadline(
    start_worker: StartWorker, requests: RequestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", "http://127.0.0.1:9/v1")
    loop = asyncio.get_running_loop()
    async with start_worker(*ACTORS):
        began = loop.time()
        with pytest.raises(ReplyFault) as away:
            await requests.request("text", {"message": "x"}, seconds=3)
    assert away.value.fault.code == "server-away"
    assert 1 < loop.time() - began < 3
