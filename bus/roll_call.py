"""Ask every process of actors at once who is there, and the broker how long its queues are."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import ValidationError

from bus.letters import Letter
from bus.outbox import Outbox
from contracts import channels
from contracts.presence import Presence, RollCall

log = structlog.get_logger()

QUIET_SECONDS = 0.4
"""After an answer; whoever is slower than that is heard the next time."""

ROLL_TYPE, ANSWER_TYPE = "roll-call.v1", "presence.v1"


@dataclass(frozen=True)
class Depth:
    """What a queue holds that nobody has in hand, and how many take from it."""

    ready: int
    consumers: int


def answer_letter(presence: Presence, reply_to: str) -> Letter:
    return Letter("", reply_to, presence.model_dump_json(exclude_none=True).encode(), str(uuid4()), "", ANSWER_TYPE)


async def call_roll(outbox: Outbox, seconds: float) -> list[Presence]:
    """Everybody who answers within so many seconds; no longer than it takes until nobody else does. Raises PublishError."""
    heard: list[Presence] = []
    another = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        try:
            heard.append(Presence.model_validate_json(message.body))
        except ValidationError as error:
            log.warning("presence.unreadable", error=str(error))
        another.set()

    async with outbox.channel() as channel:
        queue = await channel.declare_queue(f"atelier.roll.{uuid4()}", exclusive=True, auto_delete=True)
        await queue.consume(take, no_ack=True)
        question = RollCall().model_dump_json().encode()
        await outbox.post(Letter(channels.CONTROL, "", question, str(uuid4()), "", ROLL_TYPE, reply_to=queue.name))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await another.wait()
                while another.is_set():
                    another.clear()
                    await asyncio.sleep(QUIET_SECONDS)
    return sorted(heard, key=lambda presence: presence.worker)


async def depths_of(outbox: Outbox, queues: Iterable[str]) -> dict[str, Depth | None]:
    """None for a queue that is not there."""
    names = list(queues)
    return dict(zip(names, await asyncio.gather(*(_depth(outbox, name) for name in names)), strict=True))


async def _depth(outbox: Outbox, name: str) -> Depth | None:
    try:
        async with outbox.channel() as channel:
            counted = (await channel.declare_queue(name, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    return Depth(counted.message_count or 0, counted.consumer_count or 0)
