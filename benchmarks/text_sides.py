"""The sides of `atelier bench text`: how each answers the same requests, and how many tokens it generates in which time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engines.language.embedded_text import EmbeddedTextEngine, open_embedded_text_engine
from actors.engines.language.requests import GenerationRequest, TextModelOptions
from benchmarks.harness import private_services
from benchmarks.processes import start_process
from benchmarks.request_clients import HttpConnection
from benchmarks.stock_language import Requests, open_stock_model
from benchmarks.vllm_server import vllm_server
from ops.settings import inherited_environment
from ops.supervisor import open_supervisor

BUS, DIRECT, EMBEDDED, GENERATE = SIDES = ("bus", "direct", "embedded", "generate")
VLLM_SIDES = (BUS, DIRECT)
PATH = "/v1/chat/completions"
THREADS = 1
"""Of each model, as vLLM's server has, so that a small machine has a core left for the clients."""
TEMPERATURE, TOP_P = 0.7, 0.9
MAX_ROWS = 16


@dataclass(frozen=True)
class TokenRound:
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


RunRound = Callable[[int, int, int], Awaitable[TokenRound]]
"""`clients`, requests of each on average, and the most tokens of an answer."""


@asynccontextmanager
async def open_sides(sides: tuple[str, ...], folder: Path, model: Path, dtype: str) -> AsyncIterator[dict[str, RunRound]]:
    """Each side, ready. All have the same model, precision and number of threads; one at a time computes."""
    async with AsyncExitStack() as stack:
        opened: dict[str, RunRound] = {}
        if set(sides) & set(VLLM_SIDES):
            ports = await stack.enter_async_context(open_servers(folder, model, dtype))
            opened |= {side: http_side(ports[side]) for side in VLLM_SIDES}
        if EMBEDDED in sides:
            options = TextModelOptions(str(model), dtype=dtype, max_rows=MAX_ROWS, threads=THREADS)  # type: ignore[arg-type]
            engine = await stack.enter_async_context(open_embedded_text_engine(options, lambda _: None))
            await engine.ready()
            opened[EMBEDDED] = engine_side(engine)
        if GENERATE in sides:
            generate = await stack.enter_async_context(open_stock_model("text", str(model), dtype=dtype, threads=THREADS))
            opened[GENERATE] = generate_side(generate)
        yield {side: opened[side] for side in sides}


@asynccontextmanager
async def open_servers(folder: Path, model: Path, dtype: str) -> AsyncIterator[dict[str, int]]:
    """The ports of vLLM's server and of a gateway whose text actor calls it. Raises SetupError without vLLM."""
    async with AsyncExitStack() as stack:
        opening = vllm_server(model, folder / "vllm.log", arguments=["--dtype", dtype])
        server = await asyncio.to_thread(opening.__enter__)
        stack.push(opening)
        services = await stack.enter_async_context(private_services(folder))
        own = {"VLLM_SERVER_URL": server.url, "TEXT_REPETITION_PENALTY": "1", "GATEWAY_RATE_REQUESTS": "0"}
        environment = inherited_environment() | services.environment | own
        supervisor = await stack.enter_async_context(open_supervisor(["text"], environment, lambda *_: None))
        gateway = await stack.enter_async_context(start_process(["ops.cli", "gateway", "--port", "0"], environment, "gateway.ready"))
        await supervisor.wait_until_ready(timeout_seconds=90)
        yield {BUS: gateway.port, DIRECT: server.port}


def http_side(port: int) -> RunRound:
    async def run(clients: int, each: int, tokens: int) -> TokenRound:
        async def client(numbers: AsyncIterator[int]) -> int:
            generated = 0
            with closing(HttpConnection(port)) as connection:
                async for number in numbers:
                    status, response = await connection.request("POST", PATH, request_body(number, tokens))
                    assert status == 200, response
                    generated += json.loads(response)["usage"]["completion_tokens"]
            return generated

        return await run_clients(client, clients, each)

    return run


def engine_side(engine: EmbeddedTextEngine) -> RunRound:
    async def run(clients: int, each: int, tokens: int) -> TokenRound:
        async def client(numbers: AsyncIterator[int]) -> int:
            return sum([await count_tokens(engine, text_request(number, tokens)) async for number in numbers])

        return await run_clients(client, clients, each)

    return run


def generate_side(generate: Callable[[Requests], Awaitable[int]]) -> RunRound:
    async def run(clients: int, each: int, tokens: int) -> TokenRound:
        began, generated = time.perf_counter(), 0
        for first in range(0, clients * each, clients):
            batch = [text_request(number, tokens) for number in range(first, first + clients)]
            generated += await generate(batch)
        return TokenRound(generated, time.perf_counter() - began)

    return run


async def run_clients(client: Callable[[AsyncIterator[int]], Awaitable[int]], clients: int, each: int) -> TokenRound:
    """`clients` that send one request after another, `each` on average: a faster client takes more of them."""

    async def take() -> AsyncIterator[int]:
        for number in numbers:
            yield number

    numbers, began = iter(range(clients * each)), time.perf_counter()
    generated = await asyncio.gather(*(client(take()) for _ in range(clients)))
    return TokenRound(sum(generated), time.perf_counter() - began)


async def count_tokens(engine: EmbeddedTextEngine, request: GenerationRequest) -> int:
    tokens = 0
    async for chunk in engine.generate(request, None):
        tokens = chunk.completion_tokens
    return tokens


def text_request(number: int, tokens: int) -> GenerationRequest:
    return GenerationRequest(messages(number), tokens, TEMPERATURE, TOP_P, seed=number)


def request_body(number: int, tokens: int) -> dict[str, Any]:
    sampling = {"seed": number, "temperature": TEMPERATURE, "top_p": TOP_P}
    return {"model": "tiny", "messages": messages(number), "max_tokens": tokens} | sampling


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Write of harbour {number}."}]
