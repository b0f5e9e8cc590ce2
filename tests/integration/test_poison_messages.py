"""Work that kills whoever takes it, in real processes: it is buried within its limit, and its neighbours are not touched."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from bus.amqp.topology import declare_exchanges, declare_step_queues
from bus.settings import BusSettings
from contracts import broker_names
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, wait_until

LIMIT = 3


@pytest.mark.parametrize("position", ["first", "in the middle"])
async def test_process_killing_message_is_dead_lettered_alone(
    position: str, broker_client: BrokerClient, bus_settings: BusSettings, store_folder: Path
) -> None:
    """All of them are in hand at once when the process dies, again and again; only the killer ends as a crash loop."""
    step = f"poisoned-{uuid4().hex[:8]}"
    await declare_exchanges(broker_client.channel)
    await declare_step_queues(broker_client.channel, step)
    texts = [f"neighbour {number}" for number in range(8)]
    texts.insert({"first": 0, "in the middle": 4}[position], "poison")
    for text in texts:
        await broker_client.publish(step, {"text": text}, reply_to=broker_client.reply_queue)

    replies: list[tuple[str, str]] = []

    async def all_answered() -> bool:
        """A reply may come twice, when the process died between reply and ack."""
        while not broker_client.replies.empty():
            kind, body = await broker_client.next_reply()
            replies.append((str(kind), body.get("text") or body["code"]))
        return len(set(replies)) == len(texts)

    deaths = await restart_until(all_answered, step, bus_settings, store_folder)

    assert set(replies) == {("fault.v1", "crash-loop"), *((f"{step}.done.v1", text) for text in texts if text != "poison")}
    assert deaths <= LIMIT + 1
    letter = await broker_client.take_message(broker_names.dead_letter_queue(step))
    assert (letter.body, letter.headers[Header.FAULT_CODE]) == (b'{"text": "poison"}', "crash-loop")


async def restart_until(fact: Callable[[], Awaitable[bool]], step: str, settings: BusSettings, store_folder: Path) -> int:
    """Start the actor again whenever it dies, until a fact holds; returns how often it died."""
    assert settings.database_url is not None
    environment = {
        **os.environ,
        "AMQP_URL": settings.amqp_url.get_secret_value(),
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "DELIVERY_LIMIT": str(LIMIT),
    }
    for deaths in range(3 * LIMIT):
        words = ["-m", "tests.support.crashing_actor", step, store_folder.as_uri()]
        process = await asyncio.create_subprocess_exec(sys.executable, *words, env=environment, stdout=asyncio.subprocess.DEVNULL)
        died, holds = asyncio.create_task(process.wait()), asyncio.create_task(wait_until(fact, 30))
        await asyncio.wait({died, holds}, return_when=asyncio.FIRST_COMPLETED)
        holds.cancel()
        if not died.done():
            process.kill()
            await died
            return deaths
        assert died.result() == -signal.SIGKILL
    return 3 * LIMIT
