"""Slots of anonymous requests, memory for bodies, and what is logged. The application is that of `test_admission.py`."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import Request
from structlog.testing import capture_logs

from gateway import memory_budget
from tests.unit.gateway.middleware.test_admission import KEY, app_of, client_of


async def test_anonymous_requests_take_no_slot_of_callers_with_a_key() -> None:
    """Nor more than a quarter of the anonymous slots for one address."""
    app = app_of(api_keys=f"shop:{KEY}", max_requests=1, anonymous_requests=4)
    async with client_of(app) as http:
        first = asyncio.create_task(http.get("/asyncapi"))
        await app.state.started.wait()
        second = await http.get("/asyncapi")
        with_key = await http.post("/echo", headers={"X-API-Key": KEY})
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert (second.status_code, with_key.status_code) == (429, 200)


async def test_body_without_a_key_is_short() -> None:
    """Also where no key is sent because none is needed to see the page."""
    app = app_of(api_keys=f"shop:{KEY}")

    @app.post("/asyncapi")
    async def read_body(request: Request) -> int:
        return len(await request.body())

    async with client_of(app) as http:
        answers = [await http.post("/asyncapi", content=b"x" * size) for size in (16 << 10, (16 << 10) + 1)]
    assert [answer.status_code for answer in answers] == [200, 413]


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_wait_for_memory_and_are_refused_in_time(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Content-Length, or without one; a small body always passes."""
    monkeypatch.setattr(memory_budget, "WAIT_SECONDS", 0.1)
    app = app_of(max_body_bytes=1 << 20, max_upload_bytes=1, body_memory_bytes=1 << 20)
    at_once: list[int] = []
    held = asyncio.Event()

    @app.post("/hold")
    async def hold(request: Request) -> int:
        size = len(await request.body())
        at_once.append(size)
        await held.wait()
        return size

    async def body(size: int) -> AsyncIterator[bytes]:
        yield b"x" * size

    async with client_of(app) as http:
        size = (1 << 20) - 100
        posts = [asyncio.create_task(http.post("/hold", content=body(size) if chunked else b"x" * size)) for _ in range(3)]
        refused = list((await asyncio.wait(posts, timeout=2))[0])
        small = await http.post("/echo", content=body(1000) if chunked else b"x" * 1000)
        held.set()
        answers = await asyncio.gather(*posts)
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
    assert len(refused) == 2
    assert len(at_once) == 1
    assert small.status_code == 200


async def test_chunked_body_holds_its_actual_size_once_it_is_complete() -> None:
    app = app_of(max_body_bytes=1 << 20, max_upload_bytes=1, body_memory_bytes=1 << 20)
    started, held = asyncio.Semaphore(0), asyncio.Event()

    @app.post("/hold")
    async def hold(request: Request) -> int:
        size = len(await request.body())
        started.release()
        await held.wait()
        return size

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 1000

    async with client_of(app) as http:
        posts = [asyncio.create_task(http.post("/hold", content=body())) for _ in range(5)]
        async with asyncio.timeout(3):
            for _ in posts:
                await started.acquire()
        held.set()
        assert [answer.status_code for answer in await asyncio.gather(*posts)] == [200] * 5


async def test_refused_key_is_rate_limited() -> None:
    """By address; a right key from the same address is served."""
    app = app_of(api_keys=f"shop:{KEY}", rate_requests=3)
    async with client_of(app) as http:
        statuses = [(await http.post("/echo", headers={"X-API-Key": "wrong"})).status_code for _ in range(5)]
        assert (await http.post("/echo", headers={"X-API-Key": KEY})).status_code == 200
    assert statuses == [401, 401, 401, 429, 429]


async def test_logged_path_is_cut() -> None:
    async with client_of(app_of()) as http:
        with capture_logs() as lines:
            await http.get("/" + "a" * 20_000)
    assert [len(line["path"]) for line in lines if line["event"] == "request.answered"] == [512]
