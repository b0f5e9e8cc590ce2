"""The CloudLLM server's document, in its order, on the default text engine with a small model of random weights."""

import asyncio
import io
import json
import re
import shlex
from collections.abc import AsyncIterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from actors.attachments.image_preparation import prepare_image
from actors.imaging.image_decoding import decode_image
from actors.llm.settings import TextSettings, VllmSettings
from actors.llm.text_engines import build_text_model_options
from actors.settings import AttachmentSettings
from gateway.settings import GatewaySettings
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.support.cloudllm_stack import MODEL, cloudllm_stack
from tests.support.promises import not_tried

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.models, pytest.mark.timeout(300)]
Answer = dict[str, Any]
STATUS_SECONDS = 1.1
"""The gateway asks the text actor for its status once in a second."""
NOT_IMPLEMENTED = {"detail": "vLLM의 멀티모달 지원이 안정화되면 구현 예정"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(
    rabbitmq: RabbitNode, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    async with cloudllm_stack(tmp_path_factory.mktemp("cloudllm"), rabbitmq.url, postgres.url) as client:
        yield client


async def generate(http: httpx.AsyncClient, message: str = "hello", **fields: Any) -> Answer:
    response = await http.post("/generate", json={"message": message, "max_tokens": 16} | fields)
    assert response.status_code == 200, response.text
    answer: Answer = response.json()
    return answer


def png_of_size(width: int, height: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (width, height), "red").save(file, "PNG")
        return file.getvalue()


async def batch_state(http: httpx.AsyncClient) -> Answer:
    section: Answer = (await http.get("/status/detailed")).json()["vllm_info"]
    return section


@pytest.mark.promise("Engine", "concurrent requests are processed as one batch")
@pytest.mark.promise("Limits", "VLLM_MAX_NUM_SEQS is the size of the batch")
@pytest.mark.promise("Detailed status", "the state of the batch")
@pytest.mark.promise("Benchmarks", "8 to 16 concurrent requests")
async def test_twenty_requests_run_in_a_batch_of_sixteen(http: httpx.AsyncClient) -> None:
    """The others wait for a place. Each of 20 clients asks again until a status shows it, however fast the machine is."""
    is_seen, states = asyncio.Event(), [await batch_state(http)]

    async def ask(number: int) -> list[str]:
        answers: list[Answer] = []
        while not (answers and is_seen.is_set()):
            answers.append(await generate(http, f"number {number}", max_tokens=64, temperature=0))
        return [answer["conversation_id"] for answer in answers]

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        clients = [group.create_task(ask(number)) for number in range(20)]
        while (states[-1]["running_requests"], states[-1]["pending_requests"] > 0) != (16, True):
            await asyncio.sleep(0.1)
            states.append(await batch_state(http))
        is_seen.set()
    conversations = [conversation for client in clients for conversation in client.result()]
    assert len(set(conversations)) == len(conversations) >= 20
    await asyncio.sleep(STATUS_SECONDS)
    states.append(await batch_state(http))
    assert all(state["running_requests"] <= state["max_num_seqs"] == 16 for state in states)
    tokens = [state["tokens_generated"] for state in states]
    assert tokens == sorted(tokens)
    assert tokens[-1] - tokens[0] >= 20


SPEED_OF_VLLM = not_tried(
    "needs a GPU with vLLM, and the server before it to compare with",
    ("Engine", "paged attention keeps the cache small"),
    ("Engine", "three to five times the throughput of the server before"),
    ("Engine", "60 to 80 percent less latency than the server before"),
)


@pytest.mark.promise("Base URL", "LLM_HOST is the address to listen on", differs="127.0.0.1 by default: another address needs API keys")
@pytest.mark.promise("Base URL", "LLM_PORT is the port", differs="8080 by default")
async def test_address_is_read_from_the_documented_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (GatewaySettings().host, GatewaySettings().port) == ("127.0.0.1", 8080)
    monkeypatch.setenv("LLM_HOST", "0.0.0.0")
    monkeypatch.setenv("LLM_PORT", "8001")
    assert (GatewaySettings().host, GatewaySettings().port) == ("0.0.0.0", 8001)
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    assert GatewaySettings().port == 9000


@pytest.mark.promise("Base URL", "Swagger UI at /docs")
async def test_documentation_page_and_all_its_files_come_from_the_gateway(http: httpx.AsyncClient) -> None:
    """A machine without a network shows it: every address in the page and in its style is the gateway's or data."""
    page = (await http.get("/docs")).text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(address.endswith(".js") for address in addresses)
    for address in addresses:
        assert address.startswith("data:") or (await http.get(address)).status_code == 200, address
        assert address.startswith(("data:", "/")), address
        assert not address.startswith("//"), address
    styles = [address for address in addresses if address.endswith(".css")]
    style = "".join([(await http.get(address)).text for address in styles])
    assert {start[:5] for start in re.findall(r"url\(\s*[\"']?([^)]{5})", style)} <= {"data:"}


@pytest.mark.promise("Base URL", "the OpenAPI document at /openapi.json")
async def test_openapi_document_has_every_route_of_the_document(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    routes = ("/health", "/generate", "/vision", "/multimodal", "/conversations", "/conversations/{conversation_id}", "/status/detailed")
    assert set(routes) <= set(paths)
    assert set(paths["/conversations/{conversation_id}"]) == {"get", "delete"}
    assert "501" in paths["/vision"]["post"]["responses"]


@pytest.mark.promise("Engine settings", "VLLM_MAX_MODEL_LEN, 2048 by default")
@pytest.mark.promise("Engine settings", "VLLM_MAX_NUM_SEQS, 16 by default")
async def test_length_and_batch_size_have_documented_defaults(http: httpx.AsyncClient) -> None:
    config = (await http.get("/health")).json()["engine_config"]
    assert (config["max_model_len"], config["max_num_seqs"]) == (2048, 16)


@pytest.mark.promise("Engine settings", "VLLM_BLOCK_SIZE, 16 by default", differs="16 on a GPU; vLLM on a CPU refuses it and has its own")
@pytest.mark.promise("Engine settings", "VLLM_GPU_MEMORY_UTILIZATION, 0.9 by default")
@pytest.mark.promise("Engine settings", "VLLM_TENSOR_PARALLEL_SIZE, 1 by default")
async def test_cache_and_gpu_settings_have_documented_defaults() -> None:
    """Of the engine vLLM in the worker, which uses them where there is a GPU."""
    from actors.engines.vllm.engine import CUDA_DEFAULTS

    assert CUDA_DEFAULTS == {"block_size": 16, "gpu_memory_utilization": 0.9}
    assert VllmSettings().engine_args() == {"max_model_len": 2048, "max_num_seqs": 16, "tensor_parallel_size": 1}


@pytest.mark.promise("Answer", "response is a text, response_json null and response_is_json false for prose")
@pytest.mark.promise("Answer", "conversation_id")
@pytest.mark.promise("Answer", "generation_time in seconds")
@pytest.mark.promise("Answer", "model_info with model_name, max_tokens, temperature and timings")
async def test_answer_has_the_documented_fields(http: httpx.AsyncClient) -> None:
    answer = await generate(http, temperature=0)
    assert set(answer) == {"response", "conversation_id", "generation_time", "model_info", "response_json", "response_is_json"}
    assert (answer["response_json"], answer["response_is_json"]) == (None, False)
    assert isinstance(answer["response"], str)
    assert answer["conversation_id"]
    assert 0 < answer["generation_time"] < 60
    info = answer["model_info"]
    assert info["model_name"].endswith(MODEL)
    assert (info["max_tokens"], info["temperature"]) == (16, 0)


@pytest.mark.promise("Answer", "model_info.engine is vLLM, whatever generates")
async def test_engine_has_its_fixed_name(http: httpx.AsyncClient) -> None:
    assert (await generate(http))["model_info"]["engine"] == "vLLM"
    assert (await http.get("/health")).json()["engine_type"] == "vLLM"


@pytest.mark.promise("Answer", "response_json is filled and response_is_json true when the answer is JSON")
@pytest.mark.parametrize("path", ["/generate", "/multimodal"])
async def test_json_that_is_asked_for_is_json(http: httpx.AsyncClient, path: str) -> None:
    """The model writes random letters: decoding is constrained. Too few tokens for an object are an error and no prose."""
    body = {"message": "an object", "json_only": True}
    answer = (await http.post(path, json=body | {"max_tokens": 64})).json()
    assert answer["response_is_json"] is True
    assert json.loads(answer["response"]) == answer["response_json"]
    refused = await http.post(path, json=body | {"max_tokens": 1})
    assert refused.status_code == 400
    assert "token" in refused.json()["detail"]


@pytest.mark.promise("Timings", "generation_ms: the engine's time")
@pytest.mark.promise("Timings", "total_ms: the whole processing")
@pytest.mark.promise("Timings", "tokens_generated and tokens_per_second")
@pytest.mark.promise(
    "Timings", "endpoint_total_ms: the time in the endpoint", differs="measured in the gateway, with the way over the broker"
)
@pytest.mark.promise("Timings", "json_parse_ms: parsing the answer as JSON")
@pytest.mark.promise("Generate", "the answer has the timings")
async def test_timings_are_measured(http: httpx.AsyncClient) -> None:
    timings = (await generate(http, max_tokens=64))["model_info"]["timings"]
    assert 0 < timings["generation_ms"] <= timings["total_ms"] <= timings["endpoint_total_ms"]
    assert 0 <= timings["json_parse_ms"] < timings["total_ms"]
    assert 1 <= timings["tokens_generated"] <= 64
    assert timings["tokens_per_second"] == pytest.approx(1000 * timings["tokens_generated"] / timings["generation_ms"], rel=0.05)


@pytest.mark.promise("Limits", "MAX_TOKENS_CAP, 512 by default, is the most tokens of an answer")
@pytest.mark.promise("Generate", "max_tokens, 512 by default")
@pytest.mark.promise("Generate", "temperature, 0.7 by default")
@pytest.mark.promise("Tuning", "MAX_TOKENS_CAP of 256 or 1024 for short or long answers")
async def test_answer_is_limited_to_the_cap(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values outside are moved to the nearest one, as there."""
    bodies = [{"message": "x"} | fields for fields in ({"max_tokens": 9999}, {"max_tokens": 0}, {})]
    responses = await asyncio.gather(*(http.post("/generate", json=body) for body in bodies))
    infos = [response.json()["model_info"] for response in responses]
    assert [info["max_tokens"] for info in infos] == [512, 1, 512]
    assert infos[2]["temperature"] == 0.7
    for cap in (256, 1024):
        monkeypatch.setenv("MAX_TOKENS_CAP", str(cap))
        assert TextSettings().max_tokens_cap == cap


@pytest.mark.promise("Limits", "MAX_UPLOAD_BYTES, 10 MB by default; a larger file is a 413")
async def test_larger_upload_is_refused(http: httpx.AsyncClient) -> None:
    limit = 10 << 20
    response = await http.post("/multimodal", data={"message": "sum"}, files={"file": ("x.txt", b"a" * (limit + 1))})
    assert (response.status_code, response.json()) == (413, {"detail": f"파일 크기가 제한({limit} bytes)를 초과했습니다"})


@pytest.mark.promise("Limits", "MAX_IMAGE_SIDE, 1280 pixels by default: a longer picture is scaled down")
async def test_long_picture_is_scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for side, size in ((None, (1280, 640)), ("100", (100, 50))):
        if side:
            monkeypatch.setenv("MAX_IMAGE_SIDE", side)
        prepared = await prepare_image(png_of_size(2000, 1000), AttachmentSettings())
        assert decode_image(prepared, 10**7).pixels.size == size


@pytest.mark.promise("Health", "status, model_loaded, model_name, engine_type, active_conversations, uptime")
@pytest.mark.promise("Health", "vllm_stats with engine_status, pending_requests and running_requests", differs="counted; there always 0")
@pytest.mark.promise("Health", "gpu_memory_used and gpu_memory_total", differs="null where there is no GPU, or a server does not say")
async def test_health_reports_the_engine(http: httpx.AsyncClient) -> None:
    answer = await generate(http)
    await asyncio.sleep(STATUS_SECONDS)
    health = (await http.get("/health")).json()
    assert (health["status"], health["model_loaded"], health["engine_type"]) == ("healthy", True, "vLLM")
    assert health["model_name"] == answer["model_info"]["model_name"]
    assert health["vllm_stats"] == {"engine_status": "running", "pending_requests": 0, "running_requests": 0}
    assert health["active_conversations"] == (await http.get("/conversations")).json()["total_conversations"] > 0
    assert health["uptime"] > 0
    assert (health["gpu_memory_used"], health["gpu_memory_total"]) == (None, None)


@pytest.mark.promise("Health", "the GPU's memory in GB")
@pytest.mark.promise("Detailed status", "the GPU's utilization")
@pytest.mark.gpu
async def test_gpu_figures_are_those_of_the_card(http: httpx.AsyncClient) -> None:
    health, info = (await http.get("/health")).json(), (await http.get("/status/detailed")).json()["gpu_info"]
    assert 0 < health["gpu_memory_used"] < health["gpu_memory_total"]
    assert (info["available"], info["device_count"]) == (True, 1)
    assert 0 <= info["utilization"] <= 100


@pytest.mark.promise("Generate", "POST /generate takes message, conversation_id, max_tokens and temperature")
@pytest.mark.promise("Generate", "without a conversation_id a conversation begins")
async def test_turns_with_the_same_id_are_one_conversation(http: httpx.AsyncClient) -> None:
    """An unknown id begins a conversation with another one, as there."""
    first = await generate(http, "one", conversation_id=None)
    second = await generate(http, "two", conversation_id=first["conversation_id"])
    other = await generate(http, "three", conversation_id="never-seen")
    assert second["conversation_id"] == first["conversation_id"]
    assert other["conversation_id"] not in ("never-seen", first["conversation_id"])


@pytest.mark.promise("Vision", "POST /vision is a 501", differs="with a model without vision only; a vision model answers")
@pytest.mark.promise("Multimodal", "POST /multimodal is a 501", differs="for a picture to a model without vision only; documents are read")
@pytest.mark.parametrize("stream", [False, True])
async def test_picture_for_a_model_without_vision_is_501(http: httpx.AsyncClient, stream: bool) -> None:
    """Never an invented description. The OpenAI route says the same in its format."""
    picture = png_of_size(64, 64)
    for path in ("/vision", "/multimodal"):
        response = await http.post(path, data={"message": "what", "stream": str(stream)}, files={"image": ("x.png", picture)})
        assert (response.status_code, response.json()) == (501, NOT_IMPLEMENTED)
    content = [{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}}]
    chat = {"model": "text", "messages": [{"role": "user", "content": content}], "stream": stream}
    response = await http.post("/v1/chat/completions", json=chat)
    assert (response.status_code, response.json()["error"]["code"]) == (501, "vision_unsupported")


async def test_document_is_read_by_a_model_without_vision(http: httpx.AsyncClient) -> None:
    response = await http.post("/multimodal", data={"message": "sum", "max_tokens": "8"}, files={"file": ("x.txt", "가나다".encode())})
    assert response.status_code == 200, response.text
    assert response.json()["model_info"]["file_type"] == "txt"


@pytest.mark.promise("Conversations", "GET /conversations lists all")
@pytest.mark.promise("Conversations", "GET /conversations/{id} returns one")
@pytest.mark.promise("Conversations", "DELETE /conversations/{id} deletes one")
async def test_conversations_are_listed_read_and_deleted(http: httpx.AsyncClient) -> None:
    question = "a question that is longer than the fifty characters of a preview"
    answer = await generate(http, question)
    address = f"/conversations/{answer['conversation_id']}"
    listed = (await http.get("/conversations")).json()["conversations"][0]
    stored = (await http.get(address)).json()
    deleted, unknown = await http.delete(address), await http.get(address)
    assert (listed["conversation_id"], listed["message_count"]) == (answer["conversation_id"], 2)
    kept = answer["response"].replace("\0", "\ufffd")  # no database stores a NUL, which a random model writes now and then
    assert (stored["messages"][1]["content"], listed["last_message_preview"]) == (kept, kept if len(kept) <= 50 else f"{kept[:50]}...")
    assert [message["role"] for message in stored["messages"]] == ["user", "assistant"]
    assert (stored["messages"][0]["content"], stored["message_count"]) == (question, 2)
    assert deleted.json() == {"message": f"대화 {answer['conversation_id']}가 삭제되었습니다"}
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "대화를 찾을 수 없습니다"})


@pytest.mark.promise("Detailed status", "GET /status/detailed: the engine's state and figures")
@pytest.mark.promise("Migration", "the figures are monitored")
async def test_detailed_status_reports_engine_batch_and_gpu(http: httpx.AsyncClient) -> None:
    status = (await http.get("/status/detailed")).json()
    assert list(status) == ["server_info", "model_info", "gpu_info", "vllm_info", "engine_config", "conversation_info", "features"]
    assert status["server_info"]["multimodal_support"] == "disabled"
    assert (status["model_info"]["loaded"], status["model_info"]["max_model_len"]) == (True, "2048")
    assert status["vllm_info"]["engine_status"] == "running"
    assert {"running_requests", "pending_requests", "max_num_seqs", "tokens_generated"} <= set(status["vllm_info"])
    assert status["features"]["vision_analysis"] is False


async def test_status_of_a_cpu_reports_no_gpu(http: httpx.AsyncClient) -> None:
    info = (await http.get("/status/detailed")).json()["gpu_info"]
    if info["available"]:
        pytest.skip("this machine has a GPU")
    assert list(info.values()) == [False, 0, None, None, None, None]


BENCHMARKS = not_tried(
    "needs a GPU that serves the document's 32B model",
    ("Benchmarks", "80 to 150 tokens per second for 512 tokens"),
    ("Benchmarks", "512 tokens in 3 to 8 seconds"),
    ("Benchmarks", "85 to 95 percent of the GPU in use"),
)


@pytest.mark.promise("cURL examples", "generate a text")
@pytest.mark.promise("cURL examples", "ask for the state")
async def test_curl_commands_work(http: httpx.AsyncClient) -> None:
    body = json.dumps({"message": "answer soon", "max_tokens": 512, "temperature": 0.7})
    base = str(http.base_url).rstrip("/")
    post = f"curl -sS -X POST {base}/generate -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    outputs = [json.loads(await output_of(command)) for command in (post, f"curl -sS {base}/health", f"curl -sS {base}/status/detailed")]
    assert outputs[0]["model_info"]["max_tokens"] == 512
    assert outputs[1]["status"] == "healthy"
    assert outputs[2]["model_info"]["loaded"] is True


async def output_of(command: str) -> bytes:
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


@pytest.mark.promise("Tuning", "VLLM_MAX_NUM_SEQS and VLLM_MAX_MODEL_LEN fit the batch and the context to the memory")
@pytest.mark.promise(
    "Tuning", "VLLM_GPU_MEMORY_UTILIZATION and VLLM_TENSOR_PARALLEL_SIZE for the GPUs", differs="of vLLM; not of the embedded engine"
)
@pytest.mark.promise("Migration", "the settings of vLLM are variables of the environment")
async def test_engine_is_tuned_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"MAX_NUM_SEQS": "4", "MAX_MODEL_LEN": "1024", "GPU_MEMORY_UTILIZATION": "0.5", "TENSOR_PARALLEL_SIZE": "2"}
    for name, value in values.items():
        monkeypatch.setenv(f"VLLM_{name}", value)
    options = build_text_model_options(TextSettings())
    assert (options.max_rows, options.max_model_len) == (4, 1024)
    assert VllmSettings().engine_args() == {name.lower(): float(value) for name, value in values.items()}
    documented = Path("docs/configuration.md").read_text()
    assert all(f"`VLLM_{name}`" in documented for name in values)


@pytest.mark.promise("Migration", "vLLM is installed with pip", differs="the extra `vllm`, or any vLLM server; Ray is not needed")
async def test_vllm_is_an_extra() -> None:
    assert "vllm" in (metadata("atelier").get_all("Provides-Extra") or [])


@pytest.mark.promise("Migration", "the API is the same for clients")
async def test_unknown_fields_of_older_clients_are_ignored(http: httpx.AsyncClient) -> None:
    assert (await generate(http, lora_adapter=None, unknown="field"))["response_is_json"] in (True, False)
