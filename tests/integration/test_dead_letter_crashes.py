"""A replay that is killed half way: nothing is lost, and the work is done once. At every step, with kill -9."""

import asyncio
import signal
import sys
from collections import Counter

import asyncpg
import pytest

from bus.dead_letters import replay
from bus.dead_letters.cabinet import Cabinet
from bus.settings import BusSettings
from contracts.dead_letter import ReplayDeadLetters, Selection
from tests.integration.conftest import Customer, echo_actor
from tests.integration.desk import Craft, Desk, cabinet, desk, kept, pool, size_of

__all__ = ["cabinet", "desk", "pool"]

LETTERS = 30
STEPS = {
    "while staging": 0,
    "before the first is posted": 0,
    "half-way through the confirms": LETTERS,
    "after the confirms": LETTERS,
    "after the mark": LETTERS,
    "after the commit": LETTERS,
}
"""Step to how many messages at most lie in the work queue when the sender is dead."""


async def killed_at(step: str, settings: BusSettings, what: str) -> None:
    assert settings.database_url is not None
    urls = [settings.amqp_url.get_secret_value(), settings.database_url.get_secret_value()]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.integration.dying_sender", *urls, step, what)
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL


@pytest.mark.parametrize("step", STEPS)
async def test_a_killed_replay_loses_nothing_and_does_nothing_twice(
    step: str, desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool, bus_settings: BusSettings
) -> None:
    craft = Craft()
    actor = echo_actor(craft)
    async with desk(actor):
        sent = {await customer.send(actor.step, {"text": f"{number}"}) for number in range(LETTERS)}
        group = (await kept(cabinet, LETTERS, step=actor.step))[0].group_id
    craft.broken = False
    request = ReplayDeadLetters(selection=Selection(group=group), dry_run=False)

    if step == "while staging":
        await killed_at(step, bus_settings, group)
        assert (await replay.stage(pool, request)).letters == LETTERS
    else:
        await killed_at(step, bus_settings, str((await replay.stage(pool, request)).replay_id))

    assert await size_of(customer, actor.queue) <= STEPS[step]
    async with desk(actor):
        await kept(cabinet, LETTERS, step=actor.step, state="resolved")
    assert Counter(message_id for message_id, _ in craft.done) == dict.fromkeys(sent, 1)


async def test_what_is_sent_and_marked_is_not_sent_again(
    desk: Desk, customer: Customer, cabinet: Cabinet, pool: asyncpg.Pool, bus_settings: BusSettings
) -> None:
    """A sender killed after its commit leaves exactly one copy of each message, also when another sender goes on."""
    actor = echo_actor(Craft())
    async with desk(actor):
        for number in range(LETTERS):
            await customer.send(actor.step, {"text": f"{number}"})
        await kept(cabinet, LETTERS, step=actor.step)
    told = await replay.stage(pool, ReplayDeadLetters(selection=Selection(step=actor.step), dry_run=False))
    await killed_at("after the commit", bus_settings, str(told.replay_id))
    async with desk():
        await asyncio.sleep(1.2)
    assert await size_of(customer, actor.queue) == LETTERS
