"""The CloudLLM API: turns, forms, streams and conversations."""

from typing import Any

import pytest

from contracts.fault import Fault
from gateway.compat.chat_requests import GenerateTurn
from gateway.text.client import VISION_UNSUPPORTED
from tests.support.fake_broker import Replier
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.text.test_status import STATUS

TIMINGS = {"generation_ms": 1.0, "total_ms": 2.0, "tokens_generated": 2, "tokens_per_second": 5.0}
DONE: dict[str, Any] = {
    "response": "one two",
    "conversation_id": None,
    "generation_time": 0.01,
    "model_info": {"model_name": "tiny", "max_tokens": 512, "temperature": 0.7, "timings": TIMINGS},
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    "deltas": 2,
}
DELTAS = [{"sequence": 0, "delta": "one "}, {"sequence": 1, "delta": "two"}]
UNKNOWN = Fault(code="conversation-unknown", message="unknown", step="conversation.get")
FULL = Fault(code="prompt-too-long", message="600 tokens", step="text")


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({}, {"json_only": False, "temperature": 0.7, "max_tokens": 512}),
        ({"max_tokens": 0, "temperature": None}, {"json_only": False, "max_tokens": 1}),
        ({"max_tokens": None, "conversation_id": "c"}, {"json_only": False, "temperature": 0.7, "conversation_id": "c"}),
        ({"stream": True, "unknown": 1}, {"json_only": False, "temperature": 0.7, "max_tokens": 512}),
    ],
)
def test_turn_becomes_command(fields: dict[str, Any], command: dict[str, Any]) -> None:
    assert GenerateTurn.model_validate({"message": "x"} | fields).command() == {"message": "x"} | command


async def test_response_has_empty_id_without_conversation(gateway: OpenFakeGateway) -> None:
    response = await gateway({"text": DONE | {"deltas": None}}).http.post("/generate", json={"message": "x"})
    assert (response.status_code, response.json()["response"], response.json()["conversation_id"]) == (200, "one two", "")
    assert response.json()["model_info"]["timings"]["endpoint_total_ms"] > 0


async def test_stream_sends_deltas_then_result(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway({"text": DONE})
    fake_gateway.publisher.deltas["text"] = DELTAS
    response = await fake_gateway.http.post("/generate", json={"message": "x", "stream": True})
    events = [block.split("\n")[0] for block in response.text.strip().split("\n\n")]
    assert events == ["event: delta", "event: delta", "event: done"]
    assert fake_gateway.publisher.commands("text")[0]["stream"] is True
    assert fake_gateway.services.open_streams == 0


@pytest.mark.parametrize(("deltas", "status", "event"), [([], 400, None), (DELTAS, 200, "event: error")])
async def test_failure_is_response_before_first_delta_and_event_after_it(
    gateway: OpenFakeGateway, deltas: list[dict[str, Any]], status: int, event: str | None
) -> None:
    fake_gateway = gateway({"text": FULL})
    fake_gateway.publisher.deltas["text"] = deltas
    response = await fake_gateway.http.post("/generate", json={"message": "x", "stream": True})
    assert response.status_code == status
    assert "600 tokens" in response.text
    assert event in response.text if event else response.json() == {"detail": "600 tokens"}


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}])
@pytest.mark.parametrize("path", ["/vision", "/multimodal"])
async def test_image_for_a_model_without_vision_is_501(gateway: OpenFakeGateway, path: str, body: dict[str, bool]) -> None:
    """Before the image is stored: there is no store here."""
    fake_gateway = gateway({"text.status": STATUS | {"vision": False}, "text": DONE})
    response = await fake_gateway.http.post(path, json={"message": "x", "image_data": "iVBORw0KGgo="} | body)
    assert (response.status_code, response.json()) == (501, {"detail": VISION_UNSUPPORTED})
    assert fake_gateway.publisher.commands("text") == []


@pytest.mark.parametrize("path", ["/generate", "/vision", "/multimodal"])
@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
async def test_numbers_that_are_not_finite_are_refused(gateway: OpenFakeGateway, path: str, number: str) -> None:
    """Also in fields that the API does not know."""
    body = f'{{"message": "x", "image_data": "iVBORw0KGgo=", "unknown": {number}}}'
    response = await gateway({"text": DONE}).http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["detail"][0]["type"]) == (422, "json_invalid")


@pytest.mark.parametrize(
    ("path", "body", "location"),
    [
        ("/generate", {}, ["body", "message"]),
        ("/vision", {"max_tokens": 4}, ["body", "message"]),
        ("/vision", {"message": "x"}, ["body", "image_data"]),
        ("/multimodal", {"message": ""}, ["body", "message"]),
    ],
)
async def test_invalid_turn_is_422_with_location(gateway: OpenFakeGateway, path: str, body: dict[str, Any], location: list[str]) -> None:
    response = await gateway().http.post(path, json=body)
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, location)


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        ({"conversation_id": "c", "deleted": True}, 200, {"message": "대화 c가 삭제되었습니다"}),
        (UNKNOWN, 404, {"detail": "대화를 찾을 수 없습니다"}),
        (UNKNOWN.model_copy(update={"code": "loading"}), 503, {"detail": "vLLM 엔진이 초기화되지 않았습니다"}),
        (UNKNOWN.model_copy(update={"code": "bug"}), 500, {"detail": "unknown"}),
        (None, 503, {"detail": "vLLM 엔진이 초기화되지 않았습니다"}),
    ],
)
async def test_conversation_deletion_has_source_system_status_and_text(
    gateway: OpenFakeGateway, reply: Replier, status: int, body: dict[str, str]
) -> None:
    response = await gateway({"conversation.delete": reply}, question_seconds=0.02).http.delete("/conversations/c")
    assert (response.status_code, response.json()) == (status, body)
