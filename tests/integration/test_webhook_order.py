"""Webhooks stay in order across processes: two actors that share only a real Postgres, and a real HTTP server."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from actors.settings import WebhookSettings
from actors.webhook import open_webhook, webhook
from actors.webhooks.delivery_lock import SQL, PostgresDeliveryLock
from actors.webhooks.webhook_client import WebhookClient, open_webhook_client
from bus.actor import Handler, Resources
from bus.errors import PermanentError, TemporaryError
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.webhook import Webhook
from tests.support.actor_context import make_context
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend

ROOT = Path(__file__).parents[2]
COMPLETE = Webhook(kind="complete", generation_id=7, result_url="https://cdn.example/7.png")
FAILED = Webhook(kind="failed", generation_id=7)


def progress(percent: int) -> Webhook:
    fields = {"current_step": percent, "total_steps": 100, "progress_percent": percent}
    return Webhook.model_validate({"kind": "progress", "generation_id": 7, "progress": fields})


@pytest.fixture
async def backend() -> AsyncIterator[WebhookBackend]:
    async with open_webhook_backend() as backend:
        yield backend


@pytest.fixture
async def claims(tmp_path: Path) -> AsyncIterator[ClaimStore]:
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as store:
        yield store


@pytest.fixture
async def webhook_client(backend: WebhookBackend) -> AsyncIterator[WebhookClient]:
    settings = WebhookSettings(BACKEND_API_URL=backend.url, webhook_timeout_seconds=5)
    async with open_webhook_client(settings) as client:
        yield client


@pytest.fixture
async def pools(database_url: str) -> AsyncIterator[list[asyncpg.Pool]]:
    """One pool for each simulated process."""
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as first,
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as second,
    ):
        await first.execute(SQL["schema"])
        await first.execute("truncate atelier.webhook_calls")
        yield [first, second]


@pytest.fixture
async def locks(database_url: str) -> AsyncIterator[list[SessionLocks]]:
    """Those of each simulated process."""
    locks = [SessionLocks(lambda: connect_session(database_url)) for _ in range(2)]
    yield locks
    for process_locks in locks:
        await process_locks.close()


@pytest.fixture
async def processes(webhook_client: WebhookClient, pools: list[asyncpg.Pool], locks: list[SessionLocks]) -> list[Handler]:
    return [partial(webhook, client=webhook_client, lock=PostgresDeliveryLock(*process)) for process in zip(pools, locks, strict=True)]


async def test_progress_after_completion_in_another_process_is_dropped(processes: list[Handler], backend: WebhookBackend) -> None:
    first_process, second_process = processes
    assert (await first_process(progress(50), make_context("m1"))).delivered
    assert not (await second_process(progress(25), make_context("m2"))).delivered
    assert (await second_process(COMPLETE, make_context("m3"))).delivered
    assert not (await first_process(progress(90), make_context("m4"))).delivered
    assert backend.paths == ["progress", "complete"]


async def test_complete_waits_for_progress_of_another_process(processes: list[Handler], backend: WebhookBackend) -> None:
    backend.release_event = asyncio.Event()
    first = asyncio.create_task(processes[0](progress(50), make_context("m1")))
    await backend.request_semaphore.acquire()
    last = asyncio.create_task(processes[1](COMPLETE, make_context("m2")))
    await asyncio.sleep(0.1)
    assert backend.paths == ["progress"]
    backend.release_event.set()
    await asyncio.gather(first, last)
    assert backend.paths == ["progress", "complete"]


async def test_webhooks_of_different_generations_run_concurrently(processes: list[Handler], backend: WebhookBackend) -> None:
    backend.release_event = asyncio.Event()
    calls = [processes[index % 2](COMPLETE.model_copy(update={"generation_id": index}), make_context(f"m{index}")) for index in range(6)]
    waiting = asyncio.gather(*calls)
    async with asyncio.timeout(5):
        for _ in calls:
            await backend.request_semaphore.acquire()
    backend.release_event.set()
    await waiting
    assert backend.paths == ["complete"] * 6


async def test_concurrent_webhooks_are_ordered(processes: list[Handler], backend: WebhookBackend) -> None:
    """In any order of arrival: no progress after the complete, no percent twice, one complete."""
    commands = [*(progress(percent) for percent in (0, 25, 50, 75, 90)), COMPLETE, FAILED]
    await asyncio.gather(*(processes[index % 2](command, make_context(f"m{index}")) for index, command in enumerate(commands)))
    paths = backend.paths
    assert paths.count("complete") == 1
    assert "progress" not in paths[paths.index("complete") :]
    percents = [request.body["progress"]["progress_percent"] for request in backend.requests if request.method == "PATCH"]
    assert percents == sorted(set(percents))


@pytest.mark.usefixtures("pools")
async def test_interrupted_failed_webhook_is_not_repeated(processes: list[Handler], backend: WebhookBackend) -> None:
    backend.release_event = asyncio.Event()
    interrupted = asyncio.create_task(processes[0](FAILED, make_context("m1")))
    await backend.request_semaphore.acquire()
    interrupted.cancel()
    await asyncio.gather(interrupted, return_exceptions=True)
    repeated = await processes[1](FAILED, make_context("m1"))
    assert (repeated.delivered, backend.paths) == (False, ["failed"])
    assert "refund" in (repeated.reason or "")


async def test_interrupted_complete_webhook_is_repeated(processes: list[Handler], backend: WebhookBackend) -> None:
    backend.release_event = asyncio.Event()
    interrupted = asyncio.create_task(processes[0](COMPLETE, make_context("m1")))
    await backend.request_semaphore.acquire()
    interrupted.cancel()
    await asyncio.gather(interrupted, return_exceptions=True)
    backend.release_event.set()
    assert (await processes[1](COMPLETE, make_context("m1"))).delivered
    assert (await processes[1](COMPLETE, make_context("m1"))).delivered
    assert backend.paths == ["complete", "complete"]


async def test_rejected_failed_webhook_is_sent_by_another_process(processes: list[Handler], backend: WebhookBackend) -> None:
    backend.responses = [429]
    with pytest.raises(TemporaryError):
        await processes[0](FAILED, make_context("m1"))
    assert (await processes[1](FAILED, make_context("m1"))).delivered


async def test_generation_belongs_to_its_first_tenant_in_every_process(processes: list[Handler], backend: WebhookBackend) -> None:
    await processes[0](progress(25), make_context("m1", tenant="shop"))
    for command in (COMPLETE, FAILED):
        with pytest.raises(PermanentError) as error:
            await processes[1](command, make_context("m2", tenant="office"))
        assert error.value.code == "generation-foreign"
    assert (await processes[1](COMPLETE, make_context("m3", tenant="shop"))).delivered
    assert backend.paths == ["progress", "complete"]


@pytest.mark.parametrize(
    ("state", "is_adopted"), [("percent = 25", True), ("complete_state = 'begun'", True), ("complete_state = 'answered'", False)]
)
async def test_running_generation_of_the_previous_release_is_finished_by_its_tenant(
    processes: list[Handler], pools: list[asyncpg.Pool], backend: WebhookBackend, state: str, is_adopted: bool
) -> None:
    """Its row names no tenant: a running one belongs to the first that calls, one that has ended to the installation."""
    await processes[0](progress(25), make_context("m1"))
    await pools[0].execute(f"update atelier.webhook_calls set tenant = null, {state}")
    complete = processes[0](COMPLETE, make_context("m2", tenant="shop"))
    if is_adopted:
        assert (await complete).delivered
        assert await pools[0].fetchval("select tenant from atelier.webhook_calls") == "shop"
    else:
        with pytest.raises(PermanentError, match="belongs to the installation"):
            await complete
        assert backend.paths == ["progress"]


async def test_delivery_lock_is_released_after_call(processes: list[Handler], pools: list[asyncpg.Pool]) -> None:
    await processes[0](COMPLETE, make_context("m1"))
    assert await pools[1].fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0


async def test_progress_is_dropped_without_database(processes: list[Handler], pools: list[asyncpg.Pool], backend: WebhookBackend) -> None:
    await pools[0].close()
    assert not (await processes[0](progress(50), make_context("m1"))).delivered
    assert backend.requests == []


async def test_old_delivery_states_are_purged_at_start(
    processes: list[Handler], pools: list[asyncpg.Pool], locks: list[SessionLocks], claims: ClaimStore
) -> None:
    await processes[0](COMPLETE, make_context("m1"))
    await processes[0](COMPLETE.model_copy(update={"generation_id": 8}), make_context("m2"))
    await pools[0].execute("update atelier.webhook_calls set changed_at = now() - interval '91 days' where generation_id = 8")
    async with open_webhook(Resources(claims, pools[0], locks=locks[0])):
        rows = await pools[0].fetch("select generation_id from atelier.webhook_calls")
    assert [row["generation_id"] for row in rows] == [7]


KILLED_SENDER = """
import asyncio, sys
import asyncpg
from actors.webhook import open_webhook
from bus.actor import Context, Resources
from bus.persistence.session_locks import SessionLocks, connect_session
from contracts.webhook import Webhook

async def main():
    locks = SessionLocks(lambda: connect_session(sys.argv[1]))
    async with asyncpg.create_pool(sys.argv[1], min_size=1) as pool, open_webhook(Resources(None, pool, locks=locks)) as handler:
        await handler(Webhook(kind="failed", generation_id=7), Context("generation-7", "m1", 1, None, None, None))

asyncio.run(main())
"""


async def test_failed_webhook_is_not_repeated_after_sigkill(processes: list[Handler], backend: WebhookBackend, database_url: str) -> None:
    backend.release_event = asyncio.Event()
    environment = os.environ | {"BACKEND_API_URL": backend.url}
    interrupted = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_SENDER, database_url, env=environment, cwd=ROOT)
    async with asyncio.timeout(30):
        await backend.request_semaphore.acquire()
    interrupted.kill()
    assert await interrupted.wait() == -signal.SIGKILL
    repeated = await processes[0](FAILED, make_context("m1"))
    assert (repeated.delivered, backend.paths) == (False, ["failed"])
