"""The official OpenAI client, gateway, broker, text actor and a real vLLM server, without fakes."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image
from pydantic import BaseModel

from actors import conversations, text
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker, wait_until
from tests.support.external_programs import MAX_MODEL_LEN, VllmServer
from tests.support.live_gateway import live_gateway, official_client
from tests.support.sample_documents import make_docx, make_pdf

pytestmark = pytest.mark.timeout(400)
ACTORS = (*text.ACTORS, *conversations.ACTORS)


@pytest.fixture
async def url(
    running_vllm: VllmServer,
    bus_settings: BusSettings,
    store_folder: Path,
    purged_queues: None,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[str]:
    monkeypatch.setenv("VLLM_SERVER_URL", running_vllm.url)
    async with live_gateway(bus_settings, store_folder, request_seconds=60) as url, start_worker(*ACTORS):
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with official_client(url) as client:
        yield client


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


class Verdict(BaseModel):
    ok: bool
    size: Literal["small", "large"]


async def test_chat_completion_returns_answer_and_usage(client: AsyncOpenAI) -> None:
    """The same seed gives the same text, also as a stream, which reports its usage, too."""
    assert [model.id async for model in client.models.list()] == ["tiny"]
    parameters: Any = {"model": "tiny", "messages": user("Tell me of harbours."), "max_tokens": 24, "seed": 5}
    completion = await client.chat.completions.create(**parameters)
    stream = await client.chat.completions.create(**parameters, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == completion.choices[0].message.content
    assert len(chunks) > 4
    assert completion.usage is not None
    assert 0 < completion.usage.completion_tokens <= 24
    assert chunks[-1].usage == completion.usage


async def test_structured_output_returns_parsed_class(client: AsyncOpenAI) -> None:
    """From a model with random weights: decoding is constrained by the schema."""
    answer = await client.chat.completions.parse(
        model="tiny", messages=user("?"), response_format=Verdict, max_tokens=100, temperature=2, seed=1
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Verdict)


async def test_concurrent_requests_share_batch(client: AsyncOpenAI, running_vllm: VllmServer) -> None:
    """A random model may end its answers at once, so several rounds are sampled until two requests were seen in one batch."""
    highest = 0.0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, await asyncio.to_thread(running_vllm.metric, "vllm:num_requests_running"))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    for _ in range(10):
        calls = (client.chat.completions.create(model="text", messages=user(str(number)), max_tokens=200) for number in range(16))
        answers = await asyncio.gather(*calls)
        assert all(answer.usage and answer.usage.completion_tokens for answer in answers)
        if highest > 1:
            break
    watching.cancel()
    assert highest > 1


async def test_client_disconnect_frees_engine(client: AsyncOpenAI, running_vllm: VllmServer) -> None:
    """A random model may end its answer before the engine is asked, so it answers again until it was seen at work."""

    async def running() -> float:
        return await asyncio.to_thread(running_vllm.metric, "vllm:num_requests_running")

    async def is_idle() -> bool:
        return await running() == 0

    for _ in range(10):
        await wait_until(is_idle, 10)
        stream = await client.chat.completions.create(model="tiny", messages=user("on and on"), max_tokens=450, stream=True)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        if count := await running():
            break
        await stream.close()
    assert count == 1
    await stream.close()
    await wait_until(is_idle, 10)
    assert await is_idle()


async def test_prompt_over_context_returns_400_with_limits(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="tiny", messages=user("word " * 600))
    assert raised.value.code == "context_length_exceeded"
    response = await http.post("/generate", json={"message": "word " * 600})
    assert response.status_code == 400
    for message in (raised.value.message, response.json()["detail"]):
        numbers = [int(part) for part in message.replace(",", " ").replace(".", " ").split() if part.isdigit()]
        assert MAX_MODEL_LEN in numbers
        assert max(numbers) > MAX_MODEL_LEN


async def test_conversation_is_stored_listed_and_deleted(http: httpx.AsyncClient) -> None:
    """With the texts of the CloudLLM API. `/health` reports the engine meanwhile."""
    first = (await http.post("/generate", json={"message": "하나", "max_tokens": 8})).json()
    conversation_id = first["conversation_id"]
    await http.post("/generate", json={"message": "둘", "max_tokens": 8, "conversation_id": conversation_id})
    stored, health = (await http.get(f"/conversations/{conversation_id}")).json(), (await http.get("/health")).json()
    assert [message["content"] for message in stored["messages"][::2]] == ["하나", "둘"]
    assert stored["messages"][1]["content"] == first["response"].replace("\0", "\ufffd"), "PostgreSQL cannot store NUL"
    assert (health["status"], health["model_loaded"], health["model_name"]) == ("healthy", True, "tiny")
    assert (await http.delete(f"/conversations/{conversation_id}")).json() == {"message": f"대화 {conversation_id}가 삭제되었습니다"}
    assert (await http.get(f"/conversations/{conversation_id}")).status_code == 404


@pytest.mark.parametrize(("data", "kind"), [(make_pdf("The harbour is open."), "pdf"), (make_docx("The harbour is open."), "docx")])
async def test_document_text_is_in_prompt(http: httpx.AsyncClient, data: bytes, kind: str) -> None:
    answer = await http.post("/multimodal", data={"message": "open?", "max_tokens": "8"}, files={"file": ("any", data)})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model_info"]["engine"], answer.json()["model_info"]["file_type"]) == ("vLLM+Multimodal", kind)
    locked = await http.post("/multimodal", data={"message": "open?"}, files={"file": ("any", make_pdf("x", password="secret"))})
    assert (locked.status_code, "password" in locked.json()["detail"]) == (400, True)


async def test_text_only_model_rejects_image(http: httpx.AsyncClient) -> None:
    with io.BytesIO() as file:
        Image.new("RGB", (40, 40), "red").save(file, "PNG")
        image = file.getvalue()
    answer = await http.post("/vision", data={"message": "what"}, files={"image": ("x.png", image)})
    assert answer.status_code == 501, answer.text


@pytest.mark.usefixtures("purged_queues")
async def test_unavailable_server_returns_503_with_retry_after(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_URL", "http://127.0.0.1:9/v1")
    limits = {"request_seconds": 3}
    async with live_gateway(bus_settings, store_folder, **limits) as url, official_client(url) as client, start_worker(*ACTORS):
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="tiny", messages=user("x"))
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            response = await http.post("/generate", json={"message": "x"})
    assert (raised.value.status_code, raised.value.response.headers["retry-after"]) == (503, "5")
    assert (response.status_code, response.json()) == (503, {"detail": "vLLM 엔진이 초기화되지 않았습니다"})
