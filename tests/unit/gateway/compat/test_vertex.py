"""The Vertex AI API: its variables, predictions, the health check."""

import asyncio
import base64
from typing import Any, cast

import pytest

from bus.errors import TemporaryError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.fault import Fault
from gateway.compat.vertex import VertexSettings, apply_vertex_settings
from gateway.settings import GatewaySettings
from gateway.text.uploads import MAX_INLINE_CHARS
from tests.support.fake_broker import Replier, Reply
from tests.unit.gateway.conftest import OpenFakeGateway


def test_settings_are_unchanged_outside_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIP_HTTP_PORT", "AIP_MODE", "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"):
        monkeypatch.delenv(name, raising=False)
    settings = GatewaySettings()

    assert apply_vertex_settings(settings, VertexSettings()) == settings
    assert not VertexSettings().needs_consult
    assert VertexSettings.model_validate({"health_route": "/alive"}).needs_consult, "its routes are named"
    assert not VertexSettings().keyless


def test_container_uses_vertex_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"AIP_HTTP_PORT": "8085", "AIP_MODE": "PREDICTION", "AIP_PREDICT_ROUTE": "/v1/ask", "AIP_HEALTH_ROUTE": "/v1/alive"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    vertex = VertexSettings()
    settings = apply_vertex_settings(GatewaySettings(), vertex)

    assert (settings.host, settings.port) == ("0.0.0.0", 8085)
    assert (vertex.predict_route, vertex.health_route, vertex.needs_consult) == ("/v1/ask", "/v1/alive", True)
    assert vertex.keyless == {"/v1/ask", "/v1/alive"}


READY = {"consult.ready": {"ready": True}}
LONG_IMAGE = base64.b64encode(b"x" * (MAX_INLINE_CHARS)).decode()


class FakeStore:
    async def write(self, data: bytes, *, tenant: str | None, media_type: str) -> Claim:
        return Claim(uri="s3://b/x", sha256="ab" * 32, media_type=media_type, size=len(data))


def answer(command: dict[str, Any]) -> Reply:
    return Fault(code="bug", message="cause", step="consult") if command["prompt"] == "fails" else {"prediction": command["prompt"]}


async def test_predictions_have_order_of_instances(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(READY | {"consult": answer})
    body = {"instances": [{"prompt": "a"}, {"prompt": "b", "image": "eA=="}], "parameters": {"max_new_tokens": 5}}
    response = await fake_gateway.http.post("/predict", json=body)
    assert (response.status_code, response.json()) == (200, {"predictions": ["a", "b"]})
    commands = sorted(fake_gateway.publisher.commands("consult"), key=lambda command: command["prompt"])
    assert commands == [{"prompt": "a", "max_new_tokens": 5}, {"prompt": "b", "image": "eA==", "max_new_tokens": 5}]


async def test_long_image_is_stored(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(READY | {"consult": answer}, store=cast("ClaimStore", FakeStore()))
    assert (await fake_gateway.http.post("/predict", json={"instances": [{"prompt": "a", "image": LONG_IMAGE}]})).status_code == 200
    assert fake_gateway.publisher.commands("consult")[0]["picture"]["size"] == MAX_INLINE_CHARS


@pytest.mark.parametrize(
    ("replies", "content", "status", "error"),
    [
        ({}, '{"instances": []}', 503, "Model not ready"),
        (READY, '{"instances": []}', 200, None),
        (READY, "{", 500, "Invalid JSON"),
        (READY, '{"instances": [{}, {}, {}]}', 500, "3 instances, at most 2"),
        (READY | {"consult": answer}, '{"instances": [{"prompt": "a"}, {"prompt": "fails"}]}', 500, "cause"),
        (READY, '{"instances": [{"prompt": "a"}]}', 500, "no reply"),
    ],
)
async def test_failed_request_returns_one_error_without_predictions(
    gateway: OpenFakeGateway, replies: dict[str, Replier], content: str, status: int, error: str | None
) -> None:
    fake_gateway = gateway(replies, vertex={"ready_seconds": 0.02, "max_instances": 2})
    headers = {"X-Request-Timeout": "0.02", "Content-Type": "application/json"}
    response = await fake_gateway.http.post("/predict", content=content, headers=headers)
    assert (response.status_code, list(response.json())) == (status, ["error"] if error else ["predictions"])
    assert error is None or error in response.json()["error"]


@pytest.mark.parametrize(("replies", "status"), [(READY, 200), ({}, 503)])
async def test_health_on_vertex_needs_consult(gateway: OpenFakeGateway, replies: dict[str, Replier], status: int) -> None:
    fake_gateway = gateway(replies, vertex={"mode": "PREDICTION", "ready_seconds": 0.02})
    response = await fake_gateway.http.get("/health")
    assert (response.status_code, response.json()) == (status, {"status": "healthy" if status == 200 else "loading"})


async def test_requests_at_the_same_time_share_one_question_for_readiness(gateway: OpenFakeGateway) -> None:
    """The health route has no limits, so it must not cause a message for each request; the next request asks again."""
    fake_gateway = gateway({}, vertex={"mode": "PREDICTION", "ready_seconds": 0.2})
    answers = await asyncio.gather(*(fake_gateway.http.get("/health") for _ in range(50)))
    asked = len(fake_gateway.publisher.messages)
    await fake_gateway.http.get("/health")
    assert {answer.status_code for answer in answers} == {503}
    assert (asked, len(fake_gateway.publisher.messages)) == (1, 2)


class UnavailableStore:
    async def write(self, data: bytes, **fields: Any) -> Claim:
        raise TemporaryError("timeout")


async def test_unavailable_store_is_503_with_retry_after(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway({"consult.ready": {"ready": True}}, store=cast("ClaimStore", UnavailableStore()))
    image = "A" * (MAX_INLINE_CHARS + 4)
    response = await fake_gateway.http.post("/predict", json={"instances": [{"prompt": "x", "image": image}]})
    assert (response.status_code, response.headers.get("retry-after"), response.json()) == (503, "5", {"error": "timeout"})
