"""This bus, with deliveries that take FastStream's own path to the middleware of a subscriber: decision 12 compares the two paths."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from faststream.rabbit.subscriber import RabbitSubscriber

from benchmarks.peers import atelier
from benchmarks.peers.workload import PeerConfig
from bus.amqp.broker import subscribe
from bus.worker import subscribers

open_sender = atelier.open_sender


def subscribe_to_middleware(*arguments: Any, **options: Any) -> RabbitSubscriber:
    """A subscriber whose deliveries are not given to the callback directly."""
    subscriber = subscribe(*arguments, **options)
    del subscriber.consume
    subscriber.running = True  # FastStream leaves a delivery unacknowledged that arrives before its start has returned
    return subscriber


@asynccontextmanager
async def open_worker(config: PeerConfig) -> AsyncIterator[None]:
    with patch.object(subscribers, "subscribe", subscribe_to_middleware):
        async with atelier.open_worker(config):
            yield
