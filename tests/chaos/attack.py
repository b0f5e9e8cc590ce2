"""An attacker with the right to publish: hostile messages among honest orders, and how long the steps are silent meanwhile."""

import asyncio
import time
from collections.abc import Iterator

import aio_pika

from contracts import broker_names
from tests.support.hostile_messages import HostileMessage, hostile_messages
from tests.support.raw_amqp import RawPublisher

ATTACKED_STEPS = ("image", "watermark", "upload", "webhook")
PACE_SECONDS = 0.005
"""Between the starts of two hostile messages: about as many a second as there are honest ones on all queues."""
HOSTILE_EVENT_KEY = b"image.progress.hostile"
"""Not a key that `longest_silence` binds: its own client could not decode the message."""


def publish_hostile_messages(url: str, seed: int) -> set[bytes]:
    """Publish to every queue of the pipeline: the bodies that must be dead-lettered. Blocks until the broker has confirmed all."""
    bodies: set[bytes] = set()
    with RawPublisher(url) as publisher:
        for message, exchange, key in hostile_deliveries(seed):
            started = time.monotonic()
            publisher.publish(message.properties, message.body, exchange=exchange.encode(), routing_key=key)
            if exchange != broker_names.CONTROL_EXCHANGE:
                bodies.add(message.body)
            time.sleep(max(0.0, PACE_SECONDS - (time.monotonic() - started)))
    return bodies


def hostile_deliveries(seed: int) -> Iterator[tuple[HostileMessage, str, bytes]]:
    """Each hostile message with exchange and routing key: to the foreign queue, each step, the ledger by an event key, and control."""
    routes = [("", broker_names.IMAGE_GENERATION_QUEUE.encode())]
    routes += [("", broker_names.work_queue(step).encode()) for step in ATTACKED_STEPS]
    routes += [(broker_names.EVENTS_EXCHANGE, HOSTILE_EVENT_KEY), (broker_names.CONTROL_EXCHANGE, b"")]
    batches = [
        [(message, exchange, key) for message in hostile_messages(lambda n, route=route: hostile_body(seed, route, n), seed=seed + route)]
        for route, (exchange, key) in enumerate(routes)
    ]
    for together in zip(*batches, strict=True):
        yield from together


def hostile_body(seed: int, route: int, number: int) -> bytes:
    """No JSON, and another body for each message, by which its dead letter is recognised."""
    return b"{hostile %d %d %d" % (seed, route, number)


async def longest_silence(url: str) -> float:
    """The longest time between two events of one step, and from its last event to the end. Measures until it is cancelled."""
    last: dict[str, float] = {}
    longest = 0.0
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        for key in ("*.completed.*", "job.accepted.*"):
            await queue.bind(broker_names.EVENTS_EXCHANGE, key)
        try:
            async with queue.iterator(no_ack=True) as messages:
                async for message in messages:
                    step, now = (message.routing_key or "").partition(".")[0], time.monotonic()
                    longest = max(longest, now - last.get(step, now))
                    last[step] = now
        except asyncio.CancelledError:
            return max([longest, *(time.monotonic() - at for at in last.values())])
    return longest
