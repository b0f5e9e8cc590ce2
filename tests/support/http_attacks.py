"""Hostile HTTP clients, on raw sockets: reusable generators, and a program that measures what honest clients notice of each of them.

`python -m tests.support.http_attacks` starts a private RabbitMQ node and a gateway process for each attack. Meanwhile an honest client
with a key sends `GET /health` and `POST /jobs`. It prints the median and p99 of their latencies and the peak memory of the gateway.
The attackers run in a process of their own, so that the honest client's clock does not measure them.
"""

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from statistics import quantiles
from typing import Any

import psutil

HOST = "127.0.0.1"
SMALL_BUFFER = 4096
JsonShape = Callable[[int], bytes]


def request_head(method: str, path: str, *headers: str, key: str | None = None, length: int | None = None) -> bytes:
    """The head of a request, with its final blank line."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    lines += [f"X-API-Key: {key}"] if key else []
    lines += [f"Content-Length: {length}", "Content-Type: application/json"] if length is not None else []
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def open_sockets(port: int, count: int, receive_buffer: int | None = None) -> Iterator[list[socket.socket]]:
    """`count` blocking connections. `receive_buffer`: bytes that the kernel takes of a response that nobody reads."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            connection = socket.socket()
            if receive_buffer:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.connect((HOST, port))
            sockets.append(connection)
        yield sockets
    finally:
        for connection in sockets:
            connection.close()


@contextmanager
def stalled_posts(port: int, path: str = "/console/login", count: int = 100, key: str | None = None) -> Iterator[list[socket.socket]]:
    """Each connection declares a body of 1,000 bytes, sends one of them, and waits."""
    with open_sockets(port, count) as sockets:
        for connection in sockets:
            connection.sendall(request_head("POST", path, key=key, length=1000) + b"x")
        yield sockets


@contextmanager
def slow_readers(port: int, path: str, count: int = 60, key: str | None = None) -> Iterator[list[socket.socket]]:
    """Each connection requests a large response and reads nothing of it."""
    with open_sockets(port, count, SMALL_BUFFER) as sockets:
        for connection in sockets:
            connection.sendall(request_head("GET", path, key=key))
        yield sockets


async def drip_headers(port: int, seconds: float, count: int = 300, interval_seconds: float = 1.0) -> int:
    """Slowloris: each connection sends one byte of its headers per interval. Returns how many the server closed."""
    closed = 0

    async def drip() -> None:
        nonlocal closed
        reader, writer = await asyncio.open_connection(HOST, port)
        closing = asyncio.create_task(reader.read())
        deadline = time.monotonic() + seconds
        with suppress(OSError):
            for byte in b"GET /health HTTP/1.1\r\nX-Filler: " + b"a" * 100_000:
                if closing.done() or time.monotonic() > deadline:
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.wait({closing}, timeout=interval_seconds)
        closed += closing.done()
        closing.cancel()
        writer.close()

    await asyncio.gather(*(drip() for _ in range(count)), return_exceptions=True)
    return closed


def numbers_json(size: int) -> bytes:
    """A chat request with an unknown field of about size / 2 numbers: the largest number of values for its bytes."""
    return b'{"model": "text", "messages": [{"role": "user", "content": "x"}], "extra": [' + b"1," * (size // 2 - 50) + b"1]}"


def text_json(size: int) -> bytes:
    """A chat request with one long text, like a base64 picture."""
    return b'{"model": "text", "messages": [{"role": "user", "content": "' + b"A" * (size - 80) + b'"}]}'


def escapes_json(size: int) -> bytes:
    """A chat request whose text consists of escapes."""
    return b'{"model": "text", "messages": [{"role": "user", "content": "' + rb"\u00e9" * (size // 6 - 20) + b'"}]}'


def digits_json(size: int) -> bytes:
    """A chat request with one number of `size` digits."""
    return b'{"model": "text", "messages": [{"role": "user", "content": "x"}], "seed": 1.' + b"1" * (size - 90) + b"}"


def deep_json(depth: int) -> bytes:
    return b'{"extra": ' + b"[" * depth + b"]" * depth + b"}"


JSON_SHAPES: dict[str, JsonShape] = {"numbers": numbers_json, "text": text_json, "escapes": escapes_json, "digits": digits_json}


async def exchange(port: int, data: bytes, seconds: float = 60.0) -> bytes:
    """Send bytes and read until the server closes the connection; b"" when it resets it."""
    reader, writer = await asyncio.open_connection(HOST, port)
    reading = asyncio.create_task(reader.read())
    try:
        with suppress(OSError):
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            return await asyncio.wait_for(reading, seconds)
        return b""
    finally:
        reading.cancel()
        writer.close()


async def post_forever(port: int, path: str, body: bytes, key: str | None, seconds: float, count: int = 32) -> int:
    """`count` clients that post the body again and again. Returns the number of posts that were answered."""
    deadline, answered = time.monotonic() + seconds, 0
    data = request_head("POST", path, "Connection: close", key=key, length=len(body)) + body

    async def client() -> None:
        nonlocal answered
        while time.monotonic() < deadline:
            with suppress(OSError, TimeoutError):
                answered += bool(await exchange(port, data))

    await asyncio.gather(*(client() for _ in range(count)))
    return answered


async def send_forever(port: int, data: bytes, seconds: float, count: int = 8) -> int:
    """`count` clients that send the same bytes on new connections. Returns the number of answers."""
    deadline, answered = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal answered
        while time.monotonic() < deadline:
            with suppress(OSError, TimeoutError):
                answered += bool(await exchange(port, data))

    await asyncio.gather(*(client() for _ in range(count)))
    return answered


def long_path_request(length: int = 60_000) -> bytes:
    """A path that resembles the beginning of many credentials, without a key."""
    return request_head("GET", "/" + ("token=a:" * (length // 8)), "Connection: close")


def many_headers_request(count: int = 20_000) -> bytes:
    return request_head("GET", "/jobs", "Connection: close", *(f"x{number}: y" for number in range(count)))


def many_parameters_request(count: int = 20_000) -> bytes:
    return request_head("GET", "/jobs?" + "&".join(f"a{number}=b" for number in range(count)), "Connection: close")


async def run_attack(name: str, port: int, key: str, seconds: float, file_path: str) -> int:
    """One attack for `seconds`."""
    shape = name.removeprefix("json-")
    if shape in JSON_SHAPES:
        return await post_forever(port, "/v1/chat/completions", JSON_SHAPES[shape](26 << 20), key, seconds)
    match name:
        case "none":
            await asyncio.sleep(seconds)
        case "stalled-posts":
            with stalled_posts(port):
                await asyncio.sleep(seconds)
        case "slow-readers":
            with slow_readers(port, file_path, key=key):
                await asyncio.sleep(seconds)
        case "drip-headers":
            return await drip_headers(port, seconds)
        case "long-path":
            return await send_forever(port, long_path_request(), seconds)
        case "many-headers":
            return await send_forever(port, many_headers_request(), seconds)
        case "many-parameters":
            return await send_forever(port, many_parameters_request(), seconds)
        case "json-deep":
            return await post_forever(port, "/jobs", deep_json(100_000), key, seconds)
        case "json-allowed":
            return await post_forever(port, "/jobs", order_with_values(140_000), key, seconds)
        case "json-1mb":
            return await post_forever(port, "/jobs", order_with_values(1 << 20), key, seconds)
        case "form-fields":
            return await send_forever(port, form_request(26 << 20, key), seconds, 4)
        case _:
            raise ValueError(name)
    return 0


def order_with_values(size: int) -> bytes:
    """A valid order of an itinerary with as many values as fit in its bytes."""
    head = b'{"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "x"}}], "variables": {"x": ['
    return head + b"{}," * ((size - len(head) - 8) // 3) + b"1]}}"


def form_request(size: int, key: str) -> bytes:
    """A urlencoded form of one-letter fields."""
    head = request_head(
        "POST", "/vision", "Connection: close", f"Content-Length: {size}", "Content-Type: application/x-www-form-urlencoded", key=key
    )
    return head + b"a&" * (size // 2)


ATTACKS = (
    *("none", "stalled-posts", "drip-headers", "slow-readers", "long-path", "many-headers", "many-parameters"),
    *("json-deep", "json-allowed", "json-1mb", *(f"json-{shape}" for shape in JSON_SHAPES), "form-fields"),
)


class Honest:
    """An honest client: latencies in seconds by path, and the answers that were not a success."""

    def __init__(self, port: int, key: str) -> None:
        self.port, self.key = port, key
        self.latencies: dict[str, list[float]] = {"/health": [], "/jobs": []}
        self.refusals: list[str] = []

    async def run(self, interval_seconds: float = 0.02) -> None:
        """Until it is cancelled."""
        order = b'{"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "x"}}]}'
        while True:
            await self.measure("GET", "/health", b"")
            await self.measure("POST", "/jobs", order)
            await asyncio.sleep(interval_seconds)

    async def measure(self, method: str, path: str, body: bytes) -> None:
        """An answer that does not come within 20 s counts as one of 20 s."""
        started = time.perf_counter()
        data = request_head(method, path, "Connection: close", key=self.key, length=len(body)) + body
        try:
            answer = await exchange(self.port, data, 20.0)
        except (TimeoutError, OSError):
            answer = b""
        finally:
            self.latencies[path].append(time.perf_counter() - started)
        status = answer[9:12].decode()
        if status not in ("200", "202"):
            self.refusals.append(f"{path}: {status or 'none'}")


@asynccontextmanager
async def sample_memory(pid: int) -> AsyncIterator[list[int]]:
    """Yields a growing list of the process's resident bytes, one every 20 ms."""
    samples: list[int] = []
    process = psutil.Process(pid)

    async def sample() -> None:
        while True:
            samples.append(process.memory_info().rss)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def measure_attack(name: str, gateway: Any, key: str, seconds: float, file_path: str = "") -> dict[str, Any]:
    """Latencies in ms, memory in MB. `gateway`: a GatewayProcess."""
    honest = Honest(gateway.port, key)
    arguments = ["--attack", name, "--port", str(gateway.port), "--key", key, "--seconds", str(seconds), "--file", file_path]
    async with sample_memory(gateway.process.pid) as memory:
        await asyncio.sleep(0.1)
        attacker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.http_attacks", *arguments, stdout=asyncio.subprocess.PIPE
        )
        await asyncio.sleep(1.0)
        running = asyncio.create_task(honest.run())
        answered = await finished_output(attacker)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        first = memory[0]
    figures: dict[str, Any] = {"attack": name, "answered": answered, "rss_mb": first // 10**6, "peak_mb": max(memory) // 10**6}
    for path, latencies in honest.latencies.items():
        cuts = quantiles(latencies, n=100) if len(latencies) > 1 else [*latencies, 20.0] * 99
        figures |= {f"{path} p50": round(cuts[49] * 1000), f"{path} p99": round(cuts[98] * 1000)}
    return figures | {"requests": sum(map(len, honest.latencies.values())), "refused": len(honest.refusals), "why": honest.refusals[:2]}


def finished_output(process: asyncio.subprocess.Process) -> Awaitable[str]:
    async def output() -> str:
        return (await process.communicate())[0].decode().strip()

    return output()


async def main(arguments: argparse.Namespace) -> None:
    if arguments.attack:
        sys.stdout.write(str(await run_attack(arguments.attack, arguments.port, arguments.key, arguments.seconds, arguments.file)))
        return
    from tests.support.http_attack_target import open_target  # The attackers' process imports nothing of the product.

    for name in arguments.names:
        async with open_target() as (gateway, key, file_path):
            figures = await measure_attack(name, gateway, key, arguments.seconds, file_path)
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=ATTACKS)
    parser.add_argument("--seconds", type=float, default=8.0)
    for option in ("--attack", "--key", "--file"):
        parser.add_argument(option, default="")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(main(parser.parse_args()))
