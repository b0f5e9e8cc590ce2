"""The CloudLLM API on a real broker, with a fake text actor."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from bus.settings import BusSettings
from tests.support.broker_client import StartWorker
from tests.support.fake_text_actor import KNOWN_CONVERSATION, FakeTextActor
from tests.support.live_gateway import live_gateway
from tests.support.sample_documents import make_docx, make_pdf


@pytest.fixture
def text_actor() -> FakeTextActor:
    return FakeTextActor()


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path, purged_queues: None) -> AsyncIterator[httpx.AsyncClient]:
    limits = {"request_seconds": 20, "question_seconds": 1, "max_upload_bytes": 20_000}
    async with live_gateway(bus_settings, store_folder, **limits) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def png(side: int = 40) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (side, side), "red").save(file, "PNG")
        return file.getvalue()


async def test_turn_is_answered_with_all_source_fields(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor
) -> None:
    """All six, also those that are null. The endpoint's time is measured in the gateway."""
    async with start_worker(*text_actor.actors):
        response = await http.post(
            "/generate", json={"message": "one two", "conversation_id": None, "max_tokens": 9999, "temperature": 0.5}
        )
    answer = response.json()
    assert response.status_code == 200
    assert list(answer) == ["response", "conversation_id", "generation_time", "model_info", "response_json", "response_is_json"]
    assert (answer["response"], answer["conversation_id"], answer["response_json"], answer["response_is_json"]) == (
        "two one",
        KNOWN_CONVERSATION,
        None,
        False,
    )
    info = answer["model_info"]
    assert (info["engine"], info["model_name"], info["max_tokens"], info["temperature"]) == ("vLLM", "tiny", 512, 0.5)
    assert info["timings"]["endpoint_total_ms"] != 13.4
    assert (text_actor.commands[0].max_tokens, text_actor.commands[0].conversation_id) == (9999, None)


async def test_max_tokens_below_one_becomes_one(http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    async with start_worker(*text_actor.actors):
        await http.post("/generate", json={"message": "x", "max_tokens": 0})
    assert text_actor.commands[0].max_tokens == 1


async def test_missing_message_returns_source_system_error(http: httpx.AsyncClient) -> None:
    for path in ("/generate", "/vision", "/multimodal"):
        response = await http.post(path, json={"max_tokens": 4})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", "message"]
    assert (await http.post("/vision", json={"message": "x"})).json()["detail"][0]["loc"] == ["body", "image_data"]


async def test_image_is_accepted_as_json_or_form(http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """The actor receives a claim on it."""
    encoded = base64.b64encode(png()).decode()
    async with start_worker(*text_actor.actors):
        answers = [
            await http.post("/vision", json={"message": "what", "image_data": encoded}),
            await http.post("/vision", json={"message": "what", "image_data": f"data:image/png;base64,{encoded}"}),
            await http.post("/vision", data={"message": "what", "json_only": "true"}, files={"image": ("x.txt", png(), "text/plain")}),
        ]
    assert [answer.status_code for answer in answers] == [200] * 3
    claims = {command.pictures[0].claim for command in text_actor.commands}
    (claim,) = claims
    assert claim is not None
    assert (claim.media_type, claim.size) == ("image/png", len(png()))
    assert answers[2].json()["response_json"] == {"a": 1}
    info = answers[0].json()["model_info"]
    assert (info["engine"], info["multimodal"]) == ("vLLM+Vision", True)


@pytest.mark.parametrize(("data", "kind"), [(make_pdf("Hello"), "pdf"), (make_docx("Hello"), "docx"), ("안녕".encode(), "txt")])
async def test_document_type_is_detected_from_content(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor, data: bytes, kind: str
) -> None:
    """Not from its name; without or with an image."""
    async with start_worker(*text_actor.actors):
        alone = await http.post("/multimodal", data={"message": "sum"}, files={"file": ("x.png", data)})
        files = {"file_data": base64.b64encode(data).decode(), "image_data": base64.b64encode(png()).decode(), "file_type": "doc"}
        image_and_document = await http.post("/multimodal", json={"message": "sum"} | files)
    infos = [response.json()["model_info"] for response in (alone, image_and_document)]
    assert [(info["has_image"], info["has_file"], info["file_type"], info["engine"]) for info in infos] == [
        (False, True, kind, "vLLM+Multimodal"),
        (True, True, kind, "vLLM+Multimodal"),
    ]
    assert [(len(command.pictures), len(command.documents)) for command in text_actor.commands] == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("/vision", {"image_data": base64.b64encode(b"MZ" + b"\0" * 60).decode()}, 400, "지원하지 않는 파일 형식입니다"),
        ("/vision", {"image_data": "%%%"}, 400, "not base64"),
        ("/vision", {"image_data": base64.b64encode(b"\x89PNG" * 6000).decode()}, 413, "파일 크기가 제한(20000 bytes)를 초과했습니다"),
        ("/multimodal", {"file_data": base64.b64encode(b"\0\1\2").decode()}, 400, "지원하지 않는 파일 형식입니다"),
        ("/generate", {"message": "fails prompt-too-long"}, 400, "the prompt requests a failure"),
        ("/generate", {"message": "fails loading"}, 503, "vLLM 엔진이 초기화되지 않았습니다"),
        ("/generate", {"message": "fails server-away"}, 503, "vLLM 엔진이 초기화되지 않았습니다"),
        ("/multimodal", {"message": "fails document-unsupported"}, 400, "지원하지 않는 파일 형식입니다"),
        ("/multimodal", {"message": "fails document-broken"}, 400, "the prompt requests a failure"),
        ("/generate", {"message": "fails otherwise"}, 500, "생성 오류: the prompt requests a failure"),
        ("/multimodal", {"message": "fails otherwise"}, 500, "멀티모달 분석 오류: the prompt requests a failure"),
    ],
)
async def test_errors_use_source_system_messages(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor, path: str, body: dict[str, Any], status: int, detail: str
) -> None:
    async with start_worker(*text_actor.actors):
        response = await http.post(path, json={"message": "x"} | body)
    assert response.status_code == status
    assert detail in response.json()["detail"]
    assert ("retry-after" in response.headers) is (status == 503 and "vLLM" in detail)


async def test_image_is_withheld_from_text_only_model(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor
) -> None:
    text_actor.has_vision = False
    async with start_worker(*text_actor.actors):
        response = await http.post("/vision", data={"message": "what"}, files={"image": ("x.png", png())})
    assert (response.status_code, response.json()) == (501, {"detail": "vLLM의 멀티모달 지원이 안정화되면 구현 예정"})
    assert text_actor.commands == []


async def test_missing_reply_returns_503_with_retry_after(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"message": "x"}, headers={"X-Request-Timeout": "0.3"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json() == {"detail": "vLLM 엔진이 초기화되지 않았습니다"}


async def events(http: httpx.AsyncClient, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    async with http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        text = "".join([chunk async for chunk in response.aiter_text()])
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_stream_sends_ordered_deltas_then_result(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor
) -> None:
    async with start_worker(*text_actor.actors):
        received = await events(http, {"message": "three two one"})
    assert received[:-1] == [("delta", {"delta": word}) for word in ("one ", "two ", "three")]
    assert (received[-1][0], received[-1][1]["response"]) == ("done", "one two three")


async def test_stream_gap_is_error(http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    async with start_worker(*text_actor.actors):
        received = await events(http, {"message": "gap two three"})
    assert [name for name, _ in received] == ["delta", "error"]
    assert "생성 오류: delta 1 was expected" in received[-1][1]["detail"]


async def test_failure_before_first_delta_is_plain_error_response(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor
) -> None:
    async with start_worker(*text_actor.actors):
        response = await http.post("/generate", json={"message": "fails prompt-too-long", "stream": True})
    assert (response.status_code, response.json()["detail"]) == (400, "the prompt requests a failure")


@pytest.mark.parametrize("stream", [True, False])
async def test_client_disconnect_cancels_generation(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor, stream: bool
) -> None:
    async with start_worker(*text_actor.actors):
        if stream:
            async with http.stream("POST", "/generate", json={"message": "endless", "stream": True}) as response:
                async for _ in response.aiter_text():
                    break
        else:
            call = asyncio.create_task(http.post("/generate", json={"message": "endless"}))
            await asyncio.wait_for(text_actor.started.wait(), 10)
            call.cancel()
            await asyncio.wait({call})
        await asyncio.wait_for(text_actor.cancelled.wait(), 5)
        assert (await http.get("/health")).json()["streams"] == 0


async def test_conversations_are_listed_read_and_deleted(
    http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor
) -> None:
    async with start_worker(*text_actor.actors):
        conversations, conversation = (
            (await http.get("/conversations")).json(),
            (await http.get(f"/conversations/{KNOWN_CONVERSATION}")).json(),
        )
        deleted, unknown = await http.delete(f"/conversations/{KNOWN_CONVERSATION}"), await http.get("/conversations/none")
    assert conversations["total_conversations"] == 1
    assert set(conversations["conversations"][0]) == {"conversation_id", "message_count", "last_message_time", "last_message_preview"}
    assert [(message["role"], message["content"], message.get("image_info")) for message in conversation["messages"]] == [
        ("user", "무엇?", {"width": 4}),
        ("assistant", "라멘", None),
    ]
    assert deleted.json() == {"message": f"대화 {KNOWN_CONVERSATION}가 삭제되었습니다"}
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "대화를 찾을 수 없습니다"})


async def test_conversations_return_503_without_text_actor(http: httpx.AsyncClient) -> None:
    assert (await http.get("/conversations")).status_code == 503


async def test_health_and_status_report_engine_state(http: httpx.AsyncClient, start_worker: StartWorker, text_actor: FakeTextActor) -> None:
    """Also without a text actor, and while it loads its model."""
    health_without_actor = (await http.get("/health")).json()
    assert (health_without_actor["status"], health_without_actor["model_loaded"], health_without_actor["broker"]) == (
        "healthy",
        False,
        True,
    )
    async with start_worker(*text_actor.actors):
        await asyncio.sleep(1.1)
        health, status = (await http.get("/health")).json(), (await http.get("/status/detailed")).json()
        text_actor.loading = True
        await asyncio.sleep(1.1)
        loading = (await http.get("/health")).json()
    assert (health["status"], health["model_loaded"], health["model_name"], health["engine_type"]) == ("healthy", True, "tiny", "vLLM")
    assert health["vllm_stats"] == {"engine_status": "running", "pending_requests": 2, "running_requests": 4}
    assert (health["gpu_memory_used"], health["gpu_memory_total"], health["active_conversations"]) == (24.5, 49.0, 1)
    assert health["uptime"] > 1
    assert (loading["status"], loading["model_loaded"]) == ("loading", False)
    names = ["server_info", "model_info", "gpu_info", "vllm_info", "engine_config", "conversation_info", "features"]
    assert list(status) == names
    assert (status["model_info"]["max_model_len"], status["gpu_info"]["memory_usage_percent"]) == ("128", 50.0)
    assert status["conversation_info"] == {"active_conversations": 1, "total_messages": 2}


async def test_every_route_is_in_openapi_with_example(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert {"/generate", "/vision", "/multimodal", "/conversations", "/conversations/{conversation_id}", "/status/detailed"} <= set(paths)
    for path in ("/vision", "/multimodal"):
        content = paths[path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        assert content["application/json"]["schema"]["examples"]
    assert (await http.get("/docs")).status_code == 200
