"""Work that kills whoever takes it, in real processes: it is buried within its limit, and its neighbours are not touched."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from bus.settings import BusSettings
from bus.topology import declare_exchanges, declare_step
from contracts import channels
from contracts.wire import Header
from tests.integration.conftest import Customer, soon

LIMIT = 3


@pytest.mark.parametrize("position", ["first", "in the middle"])
async def test_a_killer_is_buried_and_its_neighbours_are_served(
    position: str, customer: Customer, bus_settings: BusSettings, store_folder: Path
) -> None:
    """All of them are in hand at once when the process dies, again and again; only the killer ends as a crash loop."""
    step = f"poisoned-{uuid4().hex[:8]}"
    await declare_exchanges(customer.channel)
    await declare_step(customer.channel, step)
    texts = [f"neighbour {number}" for number in range(8)]
    texts.insert({"first": 0, "in the middle": 4}[position], "poison")
    for text in texts:
        await customer.send(step, {"text": text}, reply_to=customer.reply_queue)

    replies: list[tuple[str, str]] = []

    async def all_answered() -> bool:
        """A reply may come twice, when the process died between reply and ack."""
        while not customer.replies.empty():
            kind, body = await customer.reply()
            replies.append((str(kind), body.get("text") or body["code"]))
        return len(set(replies)) == len(texts)

    deaths = await live_until(all_answered, step, bus_settings, store_folder)

    assert set(replies) == {("fault.v1", "crash-loop"), *((f"{step}.done.v1", text) for text in texts if text != "poison")}
    assert deaths <= LIMIT + 1
    letter = await customer.letter_in(channels.dead_queue(step))
    assert (letter.body, letter.headers[Header.FAULT_CODE]) == (b'{"text": "poison"}', "crash-loop")


async def live_until(fact: Callable[[], Awaitable[bool]], step: str, settings: BusSettings, store_folder: Path) -> int:
    """Start the actor again whenever it dies, until a fact holds; returns how often it died."""
    assert settings.database_url is not None
    environment = {
        **os.environ,
        "AMQP_URL": settings.amqp_url.get_secret_value(),
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "DELIVERY_LIMIT": str(LIMIT),
    }
    for deaths in range(3 * LIMIT):
        words = ["-m", "tests.integration.poisoned_actor", step, store_folder.as_uri()]
        process = await asyncio.create_subprocess_exec(sys.executable, *words, env=environment, stdout=asyncio.subprocess.DEVNULL)
        died, holds = asyncio.create_task(process.wait()), asyncio.create_task(soon(fact, 30))
        await asyncio.wait({died, holds}, return_when=asyncio.FIRST_COMPLETED)
        holds.cancel()
        if not died.done():
            process.kill()
            await died
            return deaths
        assert died.result() == -signal.SIGKILL
    return 3 * LIMIT
