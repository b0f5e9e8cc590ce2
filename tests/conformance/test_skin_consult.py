"""The promises of the skin-consult server, in the order of its document. The broker, the gateway and the actor are real; the model's
answers come from a server of the test, except where the model itself is what is tried."""

import base64
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from actors import consult
from actors.engines.language.loading import load_arguments
from actors.engines.language.requests import VlmOptions
from actors.vision.settings import VisionSettings, VlmSettings
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from gateway.compat.vertex import VertexSettings, apply_vertex_settings
from gateway.settings import GatewaySettings
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import wait_until
from tests.support.fake_openai_server import FakeOpenAiServer, default_response, open_fake_openai_server
from tests.support.promises import not_tried
from tests.support.source_system import GatewayClient, draw_text_picture, open_gateway_client

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
promise = pytest.mark.promise

DOCKERFILE = (Path(__file__).parents[2] / "Dockerfile").read_text()
QUESTION = "I am 18 and have acne. What helps?"


@dataclass
class Server:
    """The server as its clients see it: `http`; `model`: the model behind it."""

    gateway: GatewayClient
    model: FakeOpenAiServer

    async def predict(self, *instances: Any, **more: Any) -> Any:
        return await self.gateway.http.post("/predict", json={"instances": list(instances)} | more)

    async def answer_to(self, model_answer: str) -> str:
        self.model.respond = lambda _: model_answer
        return str((await self.predict({"prompt": QUESTION})).json()["predictions"][0])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(rabbitmq: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    store = StoreSettings(store_url=(tmp_path_factory.mktemp("consult") / "store").as_uri())
    bus = BusSettings.model_validate({"amqp_url": rabbitmq.url, "retry_delays_seconds": (0.1,), "long_delays_seconds": (0.5,)})
    async with AsyncExitStack() as resources:
        model = await resources.enter_async_context(open_fake_openai_server())
        patch = resources.enter_context(pytest.MonkeyPatch.context())
        for name, value in {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second"}.items():
            patch.setenv(name, value)
        await resources.enter_async_context(Worker(list(consult.ACTORS), [], bus, store).run())
        gateway = await resources.enter_async_context(open_gateway_client(bus, store, GATEWAY_READY_SECONDS="0.5"))
        server = Server(gateway, model)

        async def healthy() -> bool:
            return bool((await gateway.http.get("/health")).status_code == 200)

        await wait_until(healthy, 30)
        yield server


@pytest.fixture
def server(stack: Server) -> Server:
    stack.model.respond, stack.model.requests[:] = default_response, []
    stack.model.models_status = 200
    return stack


# -- Technology and the model


@promise("Technology", "attention is PyTorch's scaled dot product attention")
@promise("Technology", "half precision without quantization")
@pytest.mark.models
async def test_model_is_loaded_with_sdpa_in_half_precision_on_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dtype` auto is half precision on CUDA; the image sets the variable for other places than Vertex AI."""
    arguments = load_arguments(VlmOptions("a-model"), "cpu", "none")
    for variable, value in (("AIP_MODE", "PREDICTION"), ("USE_QUANTIZATION", "false")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            options = VlmSettings().build_options("a-model")
        assert (options.dtype, options.quantization, arguments["attn_implementation"]) == ("auto", "none", "sdpa")
    assert "USE_QUANTIZATION=false" in DOCKERFILE


@promise("Technology", "the default model is LLaVA 1.5 with 7 billion parameters")
async def test_default_model_is_llava(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLM_MODEL", "AIP_STORAGE_URI", "LLAVA_MODEL_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert VlmSettings().model == "llava-hf/llava-1.5-7b-hf"


REAL_MODEL_IN_HALF_PRECISION = not_tried(
    "needs a GPU and the fine-tuned weights, which are not public",
    ("Technology", "half precision of the real model on a GPU"),
)


@promise("Model", "the model is copied once from a gs:// prefix into a folder when the server starts")
async def test_model_of_a_bucket_is_named_by_the_variable_of_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a prefix is copied once and verified: tests/conformance/test_prefix_sync.py."""
    monkeypatch.delenv("VLM_MODEL", raising=False)
    monkeypatch.setenv("AIP_STORAGE_URI", "gs://skin/final")
    monkeypatch.setenv("MODEL_DIR", "/app/model_files")
    assert (VlmSettings().model, VlmSettings().model_dir) == ("gs://skin/final", Path("/app/model_files"))


# -- Endpoints


@promise("Endpoints", "GET /health is 200 with the status healthy")
@promise("Endpoints", "GET /health is 503 with the status loading while the model is not ready")
@promise("Endpoints", "POST /predict is 503 with an error while the model is not ready")
async def test_health_says_loading_exactly_while_predictions_are_refused(server: Server) -> None:
    assert await states(server) == [(200, {"status": "healthy"}), 200]
    server.model.models_status = 503  # the server behind the actor fails
    assert await states(server) == [(503, {"status": "loading"}), 503]
    assert (await server.predict({"prompt": "?"})).json() == {"error": "Model not ready"}


async def states(server: Server) -> list[Any]:
    health, predicted = await server.gateway.http.get("/health"), await server.predict({"prompt": "?"})
    return [(health.status_code, health.json()), predicted.status_code]


@promise("Endpoints", "POST /predict answers the prompt of each instance, in order, under predictions")
@promise("Endpoints", "a picture in base64 is optional; a missing prompt is an empty one")
async def test_predictions_have_the_order_of_the_instances(server: Server) -> None:
    server.model.respond = lambda request: "picture" if "image_url" in str(request["messages"]) else "text"
    image = base64.b64encode(draw_text_picture()).decode()
    response = await server.predict(
        {"prompt": QUESTION, "image": image}, {"prompt": QUESTION}, {"image": f"data:image/png;base64,{image}"}, {}
    )
    assert (response.status_code, response.json()) == (200, {"predictions": ["picture", "text", "picture", "text"]})


@promise("Endpoints", "a photo of 1.75 MB is accepted")
async def test_photo_of_a_phone_is_accepted(server: Server, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.frombytes("RGB", (770, 770), os.urandom(770 * 770 * 3)).save(photo)
    assert photo.stat().st_size > 1_750_000
    response = await server.predict({"prompt": QUESTION, "image": base64.b64encode(photo.read_bytes()).decode()})
    assert response.status_code == 200, response.text
    assert "image_url" in str(server.model.requests[-1]["messages"])


@promise("Endpoints", "instances are answered one after another", differs="at the same time, in batches; the order of the answers is kept")
async def test_instances_are_answered_at_the_same_time(server: Server) -> None:
    assert len((await server.predict(*[{"prompt": str(number)} for number in range(8)])).json()["predictions"]) == 8
    assert sorted(str(request["messages"][0]["content"])[0] for request in server.model.requests) == list("01234567")


@promise("Endpoints", "if one instance fails, the request fails with 500 and an error")
async def test_one_bad_instance_fails_the_request(server: Server) -> None:
    for bad in ({"prompt": "?", "image": "no picture"}, {"prompt": "?", "image": "aGVsbG8="}):
        response = await server.predict({"prompt": QUESTION}, bad)
        assert (response.status_code, list(response.json())) == (500, ["error"])


# -- Inference settings


@promise("Inference", "at most 1024 new tokens")
@promise("Inference", "greedy decoding")
@promise("Inference", "a repetition penalty of 1.1")
async def test_requests_have_the_documented_settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.predict({"prompt": QUESTION})
    sent = server.model.requests[-1]
    assert (sent["max_tokens"], sent["temperature"], sent["repetition_penalty"]) == (1024, 0, 1.1)
    assert VisionSettings().consult_max_new_tokens == 1024


@promise("Inference", "the template asks for a chain of thought and an answer of under 150 words")
@promise("Inference", "a prompt that its sender has wrapped in the template already is not wrapped twice")
async def test_template_is_applied_once(server: Server) -> None:
    wrapped = f"USER: <image>\n{QUESTION}\n\n[STRICT RULE] Under 150 words.\nChain-of-Thought: (short)\nAnswer: (short)\nASSISTANT:"
    for prompt in (QUESTION, wrapped):
        await server.predict({"prompt": prompt})
    plain, unwrapped = [request["messages"][0]["content"] for request in server.model.requests]
    assert plain == unwrapped
    assert plain.startswith(QUESTION)
    assert all(mark in plain for mark in ("[STRICT RULE]", "150", "Chain-of-Thought:", "Answer:"))


# -- Deployment


@promise("Deployment", "docker build of the checkout makes the image")
@promise("Deployment", "the container serves --container-predict-route and --container-health-route at the port of Vertex AI")
async def test_routes_and_port_are_those_of_the_variables(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image itself: tests/compose/vertex.sh builds and calls it; tests/unit/ops/test_images.py reads its variables."""
    variables = {"AIP_HTTP_PORT": "8085", "AIP_MODE": "PREDICTION", "AIP_PREDICT_ROUTE": "/v1/ask", "AIP_HEALTH_ROUTE": "/v1/alive"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    vertex = VertexSettings()
    gateway = apply_vertex_settings(GatewaySettings(), vertex)
    assert (gateway.host, gateway.port, vertex.predict_route, vertex.health_route) == ("0.0.0.0", 8085, "/v1/ask", "/v1/alive")
    assert 'CMD ["up", "consult", "gateway"]' in DOCKERFILE


DEPLOYMENT_ON_VERTEX = not_tried(
    "needs an account of Google Cloud",
    ("Deployment", "gcloud uploads the model and deploys it to an endpoint with an A100"),
)


# -- Post-processing, variables, troubleshooting


@promise("Post-processing", "what repeats after a blank line is removed")
@promise("Post-processing", "the chain of thought and the answer are kept")
async def test_repetition_after_the_answer_is_removed(server: Server) -> None:
    thought, answer = "Chain-of-Thought: 피부가 건조합니다.", "Answer: 보습제를 바르세요."
    assert await server.answer_to(f"{thought}\n\n{answer}\n\n보습제를 바르세요.\n\n보습제를 바르세요.") == f"{thought}\n\n{answer}"
    assert await server.answer_to("피부가 건조합니다.\n\n피부가 건조합니다.") == "피부가 건조합니다."
    assert await server.answer_to("건조한\n\n피부입니다.\n\n피부입니다.") == "건조한\n\n피부입니다."


@promise("Variables", "PYTHONUNBUFFERED=1: the log is not buffered")
async def test_image_does_not_buffer_the_log() -> None:
    assert "PYTHONUNBUFFERED=1" in DOCKERFILE


@promise("Troubleshooting", "fewer new tokens shorten an inference that would take over 60 seconds")
async def test_new_tokens_can_be_limited_by_request_and_by_setting(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.predict({"prompt": QUESTION}, parameters={"max_new_tokens": 64})
    monkeypatch.setenv("CONSULT_MAX_NEW_TOKENS", "256")
    assert (server.model.requests[-1]["max_tokens"], VisionSettings().consult_max_new_tokens) == (64, 256)


@promise("Troubleshooting", "greedy decoding: the same question gets the same answer")
async def test_same_question_is_asked_with_the_same_request(server: Server) -> None:
    answers = [(await server.predict({"prompt": QUESTION})).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert server.model.requests[0] == server.model.requests[1]
