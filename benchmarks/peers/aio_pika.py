"""Bare aio-pika: the minimum for durable, persistent, confirmed and acked after work; and the two statements of the inbox."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage
from asyncpg import Pool

from benchmarks.peers.workload import CompletionCounter, PeerConfig, Workload, run_concurrently
from bus.amqp.topology import QUORUM_ARGUMENTS
from bus.persistence.pool import open_pool

CREATE_TABLE = """
create table if not exists bench_kept (id text primary key, owner integer, result jsonb, finished_at timestamptz)
"""
CLAIM_ROW = "insert into bench_kept (id, owner) values ($1, 1) on conflict do nothing returning true"
MARK_DONE = "update bench_kept set result = $2, finished_at = now(), owner = null where id = $1 and owner = 1"


class PeerConsumer:
    def __init__(self, channel: AbstractChannel, pool: Pool | None) -> None:
        self._channel, self._pool, self._done = channel, pool, CompletionCounter()

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        body = json.loads(message.body)
        if self._pool:
            await self._pool.fetchval(CLAIM_ROW, message.message_id)
            await self._pool.execute(MARK_DONE, message.message_id, body if message.reply_to else {})
        if message.reply_to:
            reply = aio_pika.Message(message.body, correlation_id=message.correlation_id, delivery_mode=2)
            await self._channel.default_exchange.publish(reply, message.reply_to, mandatory=False)
        await message.ack()
        self._done.record(body["run"], body["of"])


@asynccontextmanager
async def open_worker(config: PeerConfig) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(await aio_pika.connect_robust(config.amqp_url))
        pool = await stack.enter_async_context(open_pool(config.settings))
        if pool:
            await pool.execute(CREATE_TABLE)
        consuming, replying = await connection.channel(), await connection.channel()
        await consuming.set_qos(config.in_flight)
        queue = await consuming.declare_queue(config.queue, durable=True, arguments=QUORUM_ARGUMENTS)
        await queue.consume(PeerConsumer(replying, pool).on_message)
        yield


class PeerSender:
    def __init__(self, exchange: AbstractExchange, queue: str, reply_to: str) -> None:
        self._exchange, self._queue, self._reply_to = exchange, queue, reply_to
        self._waiters: dict[str, asyncio.Future[bytes]] = {}

    async def on_reply(self, message: AbstractIncomingMessage) -> None:
        self._waiters.pop(message.correlation_id or "").set_result(message.body)

    async def send(self, run: Workload) -> None:
        await run_concurrently(run, lambda: self._exchange.publish(build_message(run), self._queue))

    async def ask(self, run: Workload) -> None:
        async def once() -> None:
            correlation_id = str(uuid4())
            reply = self._waiters[correlation_id] = asyncio.get_running_loop().create_future()
            await self._exchange.publish(build_message(run, correlation_id=correlation_id, reply_to=self._reply_to), self._queue)
            json.loads(await reply)

        await run_concurrently(run, once)


def build_message(run: Workload, **properties: Any) -> aio_pika.Message:
    return aio_pika.Message(json.dumps(run.body).encode(), message_id=str(uuid4()), delivery_mode=2, **properties)


@asynccontextmanager
async def open_sender(config: PeerConfig) -> AsyncIterator[PeerSender]:
    async with await aio_pika.connect_robust(config.amqp_url) as connection:
        publishing, consuming = await connection.channel(), await connection.channel()
        queue = await consuming.declare_queue(exclusive=True)
        sender = PeerSender(publishing.default_exchange, config.queue, queue.name)
        await queue.consume(sender.on_reply, no_ack=True)
        yield sender
