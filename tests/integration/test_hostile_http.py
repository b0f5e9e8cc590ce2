"""Attacks on a gateway process, from raw sockets: meanwhile a client with a key is served, and the memory stays within its bound."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bus.settings import BusSettings
from tests.support.gateway_process import GatewayProcess
from tests.support.http_attack_target import FILE_BYTES, FILE_PATH, KEY, open_gateway_with_file
from tests.support.http_attacks import (
    exchange,
    numbers_json,
    post_forever,
    request_head,
    sample_memory,
    slow_readers,
    stalled_posts,
)

ORDER = b'{"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "x"}}]}'
SETTINGS = {
    "GATEWAY_MAX_REQUESTS": "80",
    "GATEWAY_BODY_SECONDS": "3",
    "GATEWAY_SEND_SECONDS": "3",
    "GATEWAY_FILE_MEMORY_BYTES": str(134217728),
}


@pytest.fixture
async def gateway(bus_settings: BusSettings, tmp_path: Path, purged_queues: None) -> AsyncIterator[GatewayProcess]:
    async with open_gateway_with_file(bus_settings, tmp_path / "store", **SETTINGS) as (process, _, _):
        yield process


async def submit_job(port: int) -> int:
    data = request_head("POST", "/jobs", "Connection: close", key=KEY, length=len(ORDER)) + ORDER
    return int((await exchange(port, data, 30)).split()[1])


def closed_by_server(connection: socket.socket) -> bool:
    connection.setblocking(False)
    with suppress(BlockingIOError):
        try:
            while connection.recv(1 << 16):
                pass
        except ConnectionError:
            return True
        return True
    return False


async def wait_until_true(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


async def test_stalled_logins_take_no_slot_of_a_caller_with_a_key(gateway: GatewayProcess) -> None:
    """A hundred of them, more than the gateway has slots; they are closed when their deadline has passed."""
    with stalled_posts(gateway.port, count=100) as connections:
        await asyncio.sleep(0.5)
        assert [await submit_job(gateway.port) for _ in range(5)] == [202] * 5
        await wait_until_true(lambda: all(map(closed_by_server, connections)))


async def test_slow_readers_hold_bounded_memory_until_they_are_disconnected(gateway: GatewayProcess) -> None:
    """Sixty readers of a 9 MB file would hold 540 MB; a tenant may hold 64 MB of files. Then a reader gets the whole file."""
    before = gateway.psutil_process.memory_info().rss
    async with sample_memory(gateway.process.pid) as memory:
        with slow_readers(gateway.port, FILE_PATH, 60, KEY):
            assert [await submit_job(gateway.port) for _ in range(3)] == [202] * 3
            answer = await download_when_possible(gateway.port)
        assert max(memory) - before < 150e6
    head, _, body = answer.partition(b"\r\n\r\n")
    etag = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"etag"))
    assert len(body) == FILE_BYTES
    assert hashlib.sha256(body).hexdigest().encode() in etag


async def download_when_possible(port: int) -> bytes:
    """The first answer but a 503. While the slow readers hold the memory of the tenant, it is a 503."""
    async with asyncio.timeout(60):
        while True:
            answer = await exchange(port, request_head("GET", FILE_PATH, "Connection: close", key=KEY), 60)
            if not answer.startswith(b"HTTP/1.1 503"):
                return answer


async def test_large_json_does_not_stop_the_event_loop(gateway: GatewayProcess) -> None:
    """Sixteen clients post 26 MB of numbers again and again: a value needs two bytes there, and hundreds in memory."""
    latencies: list[float] = []
    async with sample_memory(gateway.process.pid) as memory:
        attack = asyncio.create_task(post_forever(gateway.port, "/v1/chat/completions", numbers_json(26 << 20), KEY, 5.0, 16))
        await asyncio.sleep(1)
        while not attack.done():
            started = time.perf_counter()
            assert await submit_job(gateway.port) == 202
            latencies.append(time.perf_counter() - started)
        await attack
        assert max(memory) < 700e6
    assert len(latencies) > 3
    assert sorted(latencies)[len(latencies) // 2] < 1.5


async def test_order_with_the_most_values_does_not_stop_the_event_loop(gateway: GatewayProcess) -> None:
    order: dict[str, Any] = {"long": b"[" + b"{}," * 340_000 + b"1]"}
    body = ORDER[:-1] + b', "variables": {"x": ' + order["long"] + b"}}"
    head = request_head("POST", "/jobs", "Connection: close", key=KEY, length=len(body))
    answer = await exchange(gateway.port, head + body, 30)
    assert answer.split()[1] == b"413"
