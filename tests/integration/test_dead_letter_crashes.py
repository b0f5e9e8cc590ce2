"""A replay whose process is killed at every crash point: no letter is lost, and the work is done once."""

import asyncio
import signal
import sys
from collections import Counter

import asyncpg
import pytest

from bus.dead_letters import replay
from bus.dead_letters.repository import DeadLetterRepository
from bus.settings import BusSettings
from contracts.dead_letter import ReplayDeadLetters, Selection
from tests.support.broker_client import BrokerClient, echo_actor
from tests.support.dead_letter_fixtures import (
    FlakyHandler,
    StartWorkerWithIngest,
    queue_size,
    wait_for_dead_letters,
)

LETTERS = 30
CRASH_POINTS = {
    "while staging": 0,
    "before the first publish": 0,
    "half-way through the confirms": LETTERS,
    "after the confirms": LETTERS,
    "after the mark": LETTERS,
    "after the commit": LETTERS,
}
"""Crash point to the maximum number of messages in the work queue after the crash."""


async def run_crashing_relay(crash_point: str, settings: BusSettings, target: str) -> None:
    assert settings.database_url is not None
    urls = [settings.amqp_url.get_secret_value(), settings.database_url.get_secret_value()]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.crashing_relay", *urls, crash_point, target)
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL


@pytest.mark.parametrize("crash_point", CRASH_POINTS)
async def test_replay_killed_at_any_point_is_exactly_once(
    crash_point: str,
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    bus_settings: BusSettings,
) -> None:
    handler = FlakyHandler()
    actor = echo_actor(handler)
    async with start_worker_with_ingest(actor):
        sent = {await broker_client.publish(actor.step, {"text": f"{number}"}) for number in range(LETTERS)}
        group = (await wait_for_dead_letters(repository, LETTERS, step=actor.step))[0].group_id
    handler.failing = False
    request = ReplayDeadLetters(selection=Selection(group=group), dry_run=False)

    if crash_point == "while staging":
        await run_crashing_relay(crash_point, bus_settings, group)
        assert (await replay.stage(pool, request)).letters == LETTERS
    else:
        await run_crashing_relay(crash_point, bus_settings, str((await replay.stage(pool, request)).replay_id))

    assert await queue_size(broker_client, actor.queue) <= CRASH_POINTS[crash_point]
    async with start_worker_with_ingest(actor):
        await wait_for_dead_letters(repository, LETTERS, step=actor.step, state="resolved")
    assert Counter(message_id for message_id, _ in handler.completed) == dict.fromkeys(sent, 1)


async def test_relayed_message_is_not_relayed_again(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    bus_settings: BusSettings,
) -> None:
    """A relay killed after its commit leaves exactly one copy of each message, also when another relay continues."""
    actor = echo_actor(FlakyHandler())
    async with start_worker_with_ingest(actor):
        for number in range(LETTERS):
            await broker_client.publish(actor.step, {"text": f"{number}"})
        await wait_for_dead_letters(repository, LETTERS, step=actor.step)
    staged = await replay.stage(pool, ReplayDeadLetters(selection=Selection(step=actor.step), dry_run=False))
    await run_crashing_relay("after the commit", bus_settings, str(staged.replay_id))
    async with start_worker_with_ingest():
        await asyncio.sleep(1.2)
    assert await queue_size(broker_client, actor.queue) == LETTERS
