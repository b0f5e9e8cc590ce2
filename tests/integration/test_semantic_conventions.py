"""Every span follows OpenTelemetry's semantic conventions: exported to a real receiver, from the gateway, the workers and the engines, with
tiny models of the real classes. No span has a prompt, a picture or an answer."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image as Pillow

from actors.adapters.image_generation import build_adapter
from actors.attachments.documents import DocumentReader
from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.language.embedded_text import open_embedded_text_engine
from actors.engines.language.requests import TextModelOptions, VlmOptions, VlmRequest
from actors.engines.language.tiny_llama import write_tiny_llama
from actors.engines.language.tiny_llava import write_tiny_llava
from actors.engines.process.executor import open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.image import ENGINE_FACTORY, OrderSources, image
from actors.llm.prompt_builder import PromptBuilder
from actors.llm.settings import TextSettings
from actors.llm.text_answer import TextDependencies, answer_text
from actors.settings import AttachmentSettings
from actors.vision.vlm_client import LocalVlmClient
from bus.errors import PermanentError
from bus.observability.settings import TracingSettings
from bus.observability.tracing import open_tracing
from bus.settings import BusSettings
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts import broker_names
from contracts.image import Image
from contracts.text import Text
from gateway.app import create_app
from gateway.settings import GatewaySettings
from ops.local.tiny_models import make_tiny_models
from tests.support.actor_context import make_context
from tests.support.broker_client import BrokerClient, StartWorker
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.otlp_collector import OtlpCollector, RecordedSpan, open_collector
from tests.support.semantic_conventions import find_violations, kind_of

pytestmark = pytest.mark.timeout(600)
PROMPT = "the hidden harbour"
ORDER = {"kind": "image_order", "prompt": PROMPT, "seed": 42, "width": 128, "height": 128}


def assert_conventional(spans: list[RecordedSpan]) -> None:
    assert {span.name: found for span in spans if (found := find_violations(span))} == {}
    assert [span.name for span in spans if PROMPT in str(span.attributes) + span.name] == []


@pytest.mark.usefixtures("purged_queues")
async def test_spans_of_http_and_messages(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    """Requests that succeed and fail, a job, a message of a foreign queue, and one that is dead-lettered."""
    foreign = {"type": "image_generation", "data": {"generation_id": 4714, "prompt": f"{PROMPT} fails", "aspect_ratio": "1:1"}}
    store = StoreSettings(store_url=store_folder.as_uri())
    app = create_app(bus_settings, GatewaySettings(), store)
    with open_collector() as collector:
        settings = TracingSettings(exporter_otlp_endpoint=collector.url)
        with open_tracing("conventions", settings, bus_settings.broker_url):
            async with (
                start_worker(FAKE_IMAGE_ACTOR, adapters=[build_adapter()]),
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60) as http,
            ):
                assert (await http.post("/jobs", json=ORDER)).status_code == 202
                assert (await http.get("/nothing/here")).status_code == 404
                assert (await http.request("BREW", "/jobs")).status_code == 405
                await broker_client.publish(broker_names.IMAGE_GENERATION_QUEUE, foreign, exchange="")
                await broker_client.take_message(broker_names.dead_letter_queue("image"))
    assert_conventional(collector.spans)
    assert {kind_of(span) for span in collector.spans} == {"http", "process", "send", None}
    [failed] = [span for span in collector.spans if span.failed]
    assert failed.attributes["error.type"] == "lora-missing"
    addresses = {span.attributes["server.address"] for span in collector.spans if kind_of(span) in ("process", "send")}
    assert addresses == {"127.0.0.1"} or addresses == {"localhost"}
    assert "HTTP" in {span.name.partition(" ")[0] for span in collector.spans}


@asynccontextmanager
async def traced(collector: OtlpCollector) -> AsyncIterator[None]:
    with open_tracing("models", TracingSettings(exporter_otlp_endpoint=collector.url)):
        yield


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claim_store(StoreSettings(store_url=(tmp_path / "claims").as_uri())) as store:
        yield store


@pytest.mark.models
async def test_spans_of_text(tmp_path: Path, claims: ClaimStore) -> None:
    """Chat, a raw prompt, several answers, JSON, and a request that the engine refuses."""
    write_tiny_llama(tmp_path / "model")
    options, attachments = TextModelOptions(str(tmp_path / "model"), threads=1), AttachmentSettings()
    messages = [{"role": "user", "content": PROMPT}]
    with open_collector() as collector:
        async with (
            traced(collector),
            open_embedded_text_engine(options, lambda _: None) as engine,
        ):
            dependencies = TextDependencies(engine, PromptBuilder(claims, DocumentReader(attachments), attachments), TextSettings())
            answer = partial(answer_text, context=make_context(), dependencies=dependencies)
            limits = {"max_tokens": 8, "temperature": 0.5, "seed": 2**63 - 1}
            done = await answer(Text.model_validate({"messages": messages, "n": 2, "stop": [PROMPT], **limits}))
            await answer(Text.model_validate({"raw_prompt": PROMPT, **limits}))
            await answer(Text.model_validate({"messages": messages, "json_schema": {"type": "boolean"}, "max_tokens": 40}))
            with pytest.raises(PermanentError, match="context"):
                await answer(Text.model_validate({"messages": [{"role": "user", "content": "x" * 9000}], "max_tokens": 8}))
    assert_conventional(collector.spans)
    operations = [span.attributes["gen_ai.operation.name"] for span in collector.spans]
    assert sorted(operations) == ["chat", "chat", "chat", "chat", "text_completion"]
    [first, *_] = [span.attributes for span in collector.spans if span.attributes.get("gen_ai.request.seed") == 2**63 - 1]
    assert (first["gen_ai.provider.name"], first["gen_ai.request.model"], first["gen_ai.response.model"]) == ("atelier", "model", "model")
    assert (first["gen_ai.request.max_tokens"], first["gen_ai.request.temperature"], first["gen_ai.output.type"]) == (8, 0.5, "text")
    assert first["gen_ai.response.finish_reasons"] in (["length"], ["stop"])
    assert first["gen_ai.usage.input_tokens"] == done.usage.prompt_tokens
    assert 1 <= first["gen_ai.usage.output_tokens"] <= 8
    assert first["atelier.device_seconds"] > 0
    [failed] = [span for span in collector.spans if span.failed]
    assert failed.attributes["error.type"] == "PromptTooLong"


@pytest.mark.models
async def test_spans_of_vision(tmp_path: Path) -> None:
    write_tiny_llava(folder := tmp_path / "model")
    Pillow.new("RGB", (40, 30), "red").save(file := io.BytesIO(), "PNG")
    spec = EngineSpec("actors.engines.language.vision_model:open_engine", VlmOptions(str(folder), threads=1))
    with open_collector() as collector:
        async with traced(collector), open_executor(spec, ExecutorSettings(), max_in_flight=4, capacity=4) as executor:
            client = LocalVlmClient(executor, "model")
            request = VlmRequest(PROMPT, images=(file.getvalue(),), max_new_tokens=6)
            response = await client.generate(request, tenant=None, deadline=None)
    assert_conventional(collector.spans)
    [span] = collector.spans
    assert (span.name, span.attributes["gen_ai.usage.output_tokens"]) == ("generate_content model", response.completion_tokens)
    assert span.attributes["atelier.device_seconds"] == response.device_seconds
    assert response.device_seconds


@pytest.mark.models
async def test_spans_of_images(tmp_path: Path, claims: ClaimStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ImageSettings(model=str(make_tiny_models(tmp_path / "models")["tiny-sd"]), threads=1)
    sources = OrderSources(LoraFileCache(claims, settings), PictureReader(claims, settings))
    with open_collector() as collector:
        async with (
            traced(collector),
            open_executor(EngineSpec(ENGINE_FACTORY, settings), ExecutorSettings(), max_in_flight=4, capacity=4) as executor,
        ):
            command = Image(prompt=PROMPT, seed=7, steps=2, width=64, height=64, count=2)
            await image(command, make_context(), claims=claims, executor=executor, sources=sources, signature_max_bytes=1)
    assert_conventional(collector.spans)
    [span] = collector.spans
    expected = {"gen_ai.request.seed": 7, "gen_ai.request.choice.count": 2, "gen_ai.output.type": "image"}
    assert {name: span.attributes[name] for name in expected} == expected
    assert span.attributes["gen_ai.response.model"] == "tiny-sd"
