"""The order of webhooks is kept across processes: two actors that share nothing but a real Postgres, and a real HTTP server."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from actors.backend.sending import Sender, open_sender
from actors.backend.turns import SQL, PostgresTurns
from actors.settings import WebhookSettings
from actors.webhook import open_webhook, webhook
from bus.actor import Handler, Tools
from bus.claims import ClaimStore
from bus.errors import TemporaryError
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from contracts.webhook import Webhook
from tests.listening_backend import Backend, open_backend
from tests.unit.actors.conftest import context_of

ROOT = Path(__file__).parents[2]
COMPLETE = Webhook(kind="complete", generation_id=7, result_url="https://cdn.example/7.png")
FAILED = Webhook(kind="failed", generation_id=7)


def progress(percent: int) -> Webhook:
    said = {"current_step": percent, "total_steps": 100, "progress_percent": percent}
    return Webhook.model_validate({"kind": "progress", "generation_id": 7, "progress": said})


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with open_backend() as listening:
        yield listening


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claims(StoreSettings(store_url=tmp_path.as_uri())) as store:
        yield store


@pytest.fixture
async def sender(backend: Backend) -> AsyncIterator[Sender]:
    settings = WebhookSettings(BACKEND_API_URL=backend.url, webhook_timeout_seconds=5)
    async with open_sender(settings) as opened:
        yield opened


@pytest.fixture
async def pools(database_url: str) -> AsyncIterator[list[asyncpg.Pool]]:
    """One pool a process."""
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as one,
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as two,
    ):
        await one.execute(SQL["schema"])
        await one.execute("truncate atelier.webhook_calls")
        yield [one, two]


@pytest.fixture
async def processes(sender: Sender, pools: list[asyncpg.Pool]) -> list[Handler]:
    return [partial(webhook, sender=sender, turns=PostgresTurns(pool)) for pool in pools]


async def test_progress_in_another_process_after_the_end_is_dropped(processes: list[Handler], backend: Backend) -> None:
    one, two = processes
    assert (await one(progress(50), context_of("m1"))).delivered
    assert not (await two(progress(25), context_of("m2"))).delivered
    assert (await two(COMPLETE, context_of("m3"))).delivered
    assert not (await one(progress(90), context_of("m4"))).delivered
    assert backend.paths == ["progress", "complete"]


async def test_complete_in_another_process_waits_for_the_progress_under_way(processes: list[Handler], backend: Backend) -> None:
    backend.hold = asyncio.Event()
    first = asyncio.create_task(processes[0](progress(50), context_of("m1")))
    await backend.arrived.acquire()
    last = asyncio.create_task(processes[1](COMPLETE, context_of("m2")))
    await asyncio.sleep(0.1)
    assert backend.paths == ["progress"]
    backend.hold.set()
    await asyncio.gather(first, last)
    assert backend.paths == ["progress", "complete"]


async def test_generations_do_not_wait_for_each_other(processes: list[Handler], backend: Backend) -> None:
    backend.hold = asyncio.Event()
    calls = [processes[index % 2](COMPLETE.model_copy(update={"generation_id": index}), context_of(f"m{index}")) for index in range(6)]
    waiting = asyncio.gather(*calls)
    async with asyncio.timeout(5):
        for _ in calls:
            await backend.arrived.acquire()
    backend.hold.set()
    await waiting


async def test_many_at_once_end_in_order(processes: list[Handler], backend: Backend) -> None:
    """Whatever comes first: no progress after the complete, no percent twice, one complete."""
    commands = [*(progress(percent) for percent in (0, 25, 50, 75, 90)), COMPLETE, FAILED]
    await asyncio.gather(*(processes[index % 2](command, context_of(f"m{index}")) for index, command in enumerate(commands)))
    paths = backend.paths
    assert paths.count("complete") == 1
    assert "progress" not in paths[paths.index("complete") :]
    percents = [heard.body["progress"]["progress_percent"] for heard in backend.heard if heard.method == "PATCH"]
    assert percents == sorted(set(percents))


async def test_a_failed_that_was_cut_off_is_not_sent_again(processes: list[Handler], backend: Backend, pools: list[asyncpg.Pool]) -> None:
    backend.hold = asyncio.Event()
    doomed = asyncio.create_task(processes[0](FAILED, context_of("m1")))
    await backend.arrived.acquire()
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    again = await processes[1](FAILED, context_of("m1"))
    assert (again.delivered, backend.paths) == (False, ["failed"])
    assert "refund" in (again.reason or "")


async def test_a_complete_that_was_cut_off_is_sent_again(processes: list[Handler], backend: Backend) -> None:
    backend.hold = asyncio.Event()
    doomed = asyncio.create_task(processes[0](COMPLETE, context_of("m1")))
    await backend.arrived.acquire()
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    backend.hold.set()
    assert (await processes[1](COMPLETE, context_of("m1"))).delivered
    assert (await processes[1](COMPLETE, context_of("m1"))).delivered
    assert backend.paths == ["complete", "complete"]


async def test_a_failed_that_was_not_taken_may_be_told_by_another_process(processes: list[Handler], backend: Backend) -> None:
    backend.answers = [429]
    with pytest.raises(TemporaryError):
        await processes[0](FAILED, context_of("m1"))
    assert (await processes[1](FAILED, context_of("m1"))).delivered


async def test_no_lock_outlives_its_call(processes: list[Handler], pools: list[asyncpg.Pool]) -> None:
    await processes[0](COMPLETE, context_of("m1"))
    assert await pools[1].fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0


async def test_progress_is_dropped_while_the_database_is_away(
    processes: list[Handler], pools: list[asyncpg.Pool], backend: Backend
) -> None:
    await pools[0].close()
    assert not (await processes[0](progress(50), context_of("m1"))).delivered
    assert backend.heard == []


async def test_what_was_told_long_ago_is_forgotten_at_the_start(
    processes: list[Handler], pools: list[asyncpg.Pool], claims: ClaimStore
) -> None:
    await processes[0](COMPLETE, context_of("m1"))
    await processes[0](COMPLETE.model_copy(update={"generation_id": 8}), context_of("m2"))
    await pools[0].execute("update atelier.webhook_calls set changed_at = now() - interval '91 days' where generation_id = 8")
    async with open_webhook(Tools(claims, pools[0])):
        rows = await pools[0].fetch("select generation_id from atelier.webhook_calls")
    assert [row["generation_id"] for row in rows] == [7]


DOOMED = """
import asyncio, sys
import asyncpg
from actors.webhook import open_webhook
from bus.actor import Context, Tools
from contracts.webhook import Webhook

async def main():
    async with asyncpg.create_pool(sys.argv[1], min_size=1) as pool, open_webhook(Tools(None, pool)) as tell:
        await tell(Webhook(kind="failed", generation_id=7), Context("generation-7", "m1", 1, None, None, None))

asyncio.run(main())
"""


async def test_after_kill_9_in_the_middle_of_a_failed_no_second_one_is_sent(
    processes: list[Handler], backend: Backend, database_url: str
) -> None:
    backend.hold = asyncio.Event()
    environment = os.environ | {"BACKEND_API_URL": backend.url}
    doomed = await asyncio.create_subprocess_exec(sys.executable, "-c", DOOMED, database_url, env=environment, cwd=ROOT)
    async with asyncio.timeout(30):
        await backend.arrived.acquire()
    doomed.kill()
    assert await doomed.wait() == -signal.SIGKILL
    again = await processes[0](FAILED, context_of("m1"))
    assert (again.delivered, backend.paths) == (False, ["failed"])
