"""A message that kills every process that takes it, in real processes: it alone is dead-lettered, within the delivery limit."""

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
    """All messages are in flight at each crash; only the one that caused it ends as a crash loop."""
    step = f"poisoned-{uuid4().hex[:8]}"
    await declare_exchanges(broker_client.channel)
    await declare_step_queues(broker_client.channel, step)
    texts = [f"harmless {number}" for number in range(8)]
    texts.insert({"first": 0, "in the middle": 4}[position], "poison")
    for text in texts:
        await broker_client.publish(step, {"text": text}, reply_to=broker_client.reply_queue)

    replies: list[tuple[str, str]] = []

    async def all_replied() -> bool:
        """A reply may arrive twice, when the process died between reply and ack."""
        while not broker_client.replies.empty():
            reply_type, body = await broker_client.next_reply()
            replies.append((str(reply_type), body.get("text") or body["code"]))
        return len(set(replies)) == len(texts)

    crashes = await restart_until(all_replied, step, bus_settings, store_folder)

    assert set(replies) == {("fault.v1", "crash-loop"), *((f"{step}.done.v1", text) for text in texts if text != "poison")}
    assert crashes <= LIMIT + 1
    dead_letter = await broker_client.take_message(broker_names.dead_letter_queue(step))
    assert (dead_letter.body, dead_letter.headers[Header.FAULT_CODE]) == (b'{"text": "poison"}', "crash-loop")


async def restart_until(condition: Callable[[], Awaitable[bool]], step: str, settings: BusSettings, store_folder: Path) -> int:
    """Start the actor again whenever it crashes, until the condition holds; returns how often it crashed."""
    assert settings.database_url is not None
    environment = {
        **os.environ,
        "AMQP_URL": settings.amqp_url.get_secret_value(),
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "DELIVERY_LIMIT": str(LIMIT),
    }
    for crashes in range(3 * LIMIT):
        arguments = ["-m", "tests.support.crashing_actor", step, store_folder.as_uri()]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL)
        exited, reached = asyncio.create_task(process.wait()), asyncio.create_task(wait_until(condition, 30))
        await asyncio.wait({exited, reached}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        if not exited.done():
            process.kill()
            await exited
            return crashes
        assert exited.result() == -signal.SIGKILL
    return 3 * LIMIT
