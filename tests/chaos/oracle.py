"""The oracle: which orders the broker confirmed, and the outcome of each, as seen from outside."""

import asyncio
import json
import subprocess
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel

from actors.adapters.image_generation import build_adapter
from contracts import broker_names
from contracts.wire import Header
from tests.chaos.environment import ChaosEnvironment

ORDER_NUMBERS = count(1)
STEPS = ("image", "watermark", "upload", "webhook")
QUIET_SECONDS, QUEUE_REPORT_SECONDS, EMPTY_READINGS = 10.0, 6.0, 2
"""A quorum queue reports the number of its messages every 5 s. No worker waits that long with a message that it has not acked."""
RECORDED_STEPS = """
select job_id, ended_at is not null as ended,
    exists (select from atelier.job_events event where event.job_id = job.job_id and step = 'job' and kind = 'accepted') as accepted,
    (select count(distinct step) from atelier.job_events event
     where event.job_id = job.job_id and kind = 'completed' and step = any($2::text[])) as steps
from atelier.jobs job where job_id = any($1::text[])
"""
DEAD_LETTERING = (broker_names.IMAGE_GENERATION_QUEUE, *STEPS, "ledger")


@dataclass
class OrderOutcomes:
    """The outcome of a round's orders, by order number."""

    lost: list[int]
    duplicated: list[int]
    unexpected: list[int]
    dead_lettered: list[int]
    expired: list[int]
    repeated_calls: int


@dataclass
class Oracle:
    """Publishes the orders of one round and checks their outcomes."""

    environment: ChaosEnvironment
    confirmed: list[int] = field(default_factory=list)
    unconfirmed: set[int] = field(default_factory=set)
    dead_lettered: set[int] = field(default_factory=set)
    causes_of_hostile: dict[bytes, str] = field(default_factory=dict)
    """The fault code of each dead letter that was a hostile message, by its body."""
    first_request: int = 0
    deadline_seconds: float | None = None
    _channel: AbstractChannel | None = None
    _connection: Any = None

    def __post_init__(self) -> None:
        self.first_request = len(self.environment.backend.requests)

    async def publish(self, orders: int, per_second: float, prompts: list[str]) -> None:
        """Publish orders as the backend does, each until the broker confirms it. An unconfirmed one may or may not have arrived."""
        for index in range(orders):
            await asyncio.sleep(1 / per_second)
            number = next(ORDER_NUMBERS)
            order = image_order(number, prompts[index % len(prompts)])
            while not await self.publish_confirmed(order):
                self.unconfirmed.add(number)
                await asyncio.sleep(0.2)
            self.confirmed.append(number)

    async def publish_confirmed(self, order: bytes) -> bool:
        try:
            async with asyncio.timeout(5):
                if self.deadline_seconds is None:
                    exchange = (await self.channel()).default_exchange
                    await exchange.publish(aio_pika.Message(order, delivery_mode=2), broker_names.IMAGE_GENERATION_QUEUE)
                else:
                    exchange = await (await self.channel()).get_exchange(broker_names.COMMANDS_EXCHANGE, ensure=False)
                    await exchange.publish(command_with_deadline(order, self.deadline_seconds), "image")
                return True
        except (OSError, TimeoutError, aio_pika.exceptions.AMQPError, RuntimeError):
            await self.close_connection()
            return False

    async def channel(self) -> AbstractChannel:
        if self._channel is None:
            self._connection = await aio_pika.connect(self.environment.node.url)
            self._channel = await self._connection.channel(on_return_raises=True)
        return self._channel

    async def close_connection(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection:
            with suppress(OSError, TimeoutError, aio_pika.exceptions.AMQPError, RuntimeError):
                await asyncio.wait_for(connection.close(), 1)

    def webhook_calls(self) -> dict[str, dict[int, set[str]]]:
        """The webhook ids by kind and order. The same id again is a repetition of the same call."""
        calls: dict[str, dict[int, set[str]]] = {"complete": defaultdict(set), "failed": defaultdict(set)}
        for request in self.environment.backend.requests[self.first_request :]:
            kind = request.path.rpartition("/")[2]
            if kind in calls:
                calls[kind][request.body["generation_id"]].add(request.headers["webhook-id"])
        return calls

    def unfinished_orders(self) -> set[int]:
        """Confirmed orders without a `complete` or `failed` webhook or a dead letter."""
        calls = self.webhook_calls()
        return set(self.confirmed) - set(calls["complete"]) - set(calls["failed"]) - self.dead_lettered

    def unsettled_hostile(self) -> set[bytes]:
        """Hostile messages that the broker confirmed and that are not dead-lettered."""
        return self.environment.hostile_bodies - set(self.causes_of_hostile)

    async def wait_until_finished(self, seconds: float) -> None:
        """Wait until every confirmed order has ended and is in the ledger, then a moment longer for duplicates.

        Give up after `seconds`, and as soon as nothing can change any more: for QUIET_SECONDS nothing has ended, and no message is left.
        """
        now = asyncio.get_running_loop().time
        deadline, ended, changed, empty = now() + seconds, -1, now(), 0
        while (open_orders := await self.count_open()) and now() < deadline and empty < EMPTY_READINGS:
            if (seen := len(self.environment.backend.requests) + len(self.dead_lettered) - open_orders) != ended:
                ended, changed, empty = seen, now(), 0
            elif now() - changed > QUIET_SECONDS:
                empty = empty + 1 if await self.is_broker_empty() else 0
                await asyncio.sleep(QUEUE_REPORT_SECONDS if empty < EMPTY_READINGS else 0)
            await asyncio.sleep(0.2)
            await self.poll_dead_letters()
        await asyncio.sleep(1.0)
        await self.close_connection()
        await self.poll_dead_letters()

    async def count_open(self) -> int:
        """What must still end: orders, hostile messages, or else orders that the ledger must still record."""
        return len(self.unfinished_orders()) + len(self.unsettled_hostile()) or len(await self.find_unrecorded())

    async def is_broker_empty(self) -> bool:
        with suppress(subprocess.SubprocessError):
            return not await asyncio.to_thread(self.environment.count_messages)
        return False

    async def poll_dead_letters(self) -> None:
        """A dead letter ends an order even where the `failed` webhook was lost, which is sent only once."""
        try:
            await self.read_dead_letters()
        except (OSError, aio_pika.exceptions.AMQPError, RuntimeError):
            await self.close_connection()

    async def read_dead_letters(self) -> None:
        for step in DEAD_LETTERING:
            queue = await (await self.channel()).get_queue(broker_names.dead_letter_queue(step), ensure=False)
            while (dead_letter := await queue.get(fail=False, no_ack=True)) is not None:
                cause = str(dead_letter.headers["atelier-fault-code"])
                assert cause
                if dead_letter.body in self.environment.hostile_bodies:
                    self.causes_of_hostile[dead_letter.body] = cause
                else:
                    self.dead_lettered.add(int((dead_letter.correlation_id or "-0").removeprefix("generation-")))

    def outcomes(self) -> OrderOutcomes:
        calls = self.webhook_calls()
        complete, failed = calls["complete"], calls["failed"]
        pictures = self.environment.picture_store.count_pictures()
        published = set(self.confirmed) | self.unconfirmed
        ended = set(failed) | self.dead_lettered | {number for number in complete if pictures[number]}
        duplicated = [number for number in published if sum(len(ids.get(number, ())) for ids in calls.values()) > 1]
        final_calls = [
            call for call in self.environment.backend.requests[self.first_request :] if call.path.endswith(("complete", "failed"))
        ]
        return OrderOutcomes(
            lost=sorted(set(self.confirmed) - ended),
            duplicated=sorted(duplicated),
            unexpected=sorted((set(complete) | set(failed)) - published),
            dead_lettered=sorted(self.dead_lettered & published),
            expired=sorted(set(failed) - self.dead_lettered),
            repeated_calls=len(final_calls) - sum(len(ids) for kind in calls.values() for ids in kind.values()),
        )

    async def find_repeated_runs(self) -> list[int]:
        """Orders with more than one row: their image step was completed twice."""
        connection = await asyncpg.connect(self.environment.postgres.url)
        table = await connection.fetchval("select to_regclass('atelier.painted')")
        rows = await connection.fetch("select job_id from atelier.painted group by job_id having count(*) > 1") if table else []
        await connection.close()
        numbers = {int(row["job_id"].removeprefix("generation-")) for row in rows}
        return sorted(numbers & (set(self.confirmed) | self.unconfirmed))

    async def find_unrecorded(self) -> list[int]:
        """Orders that have ended while the ledger does not know their end, their acceptance or a step; all while it does not respond."""
        calls = self.webhook_calls()
        ended = (set(calls["complete"]) | set(calls["failed"]) | self.dead_lettered) & set(self.confirmed)
        try:
            connection = await asyncpg.connect(self.environment.postgres.url, timeout=5)
            try:
                rows = await connection.fetch(RECORDED_STEPS, [f"generation-{number}" for number in ended], list(STEPS), timeout=5)
            finally:
                await connection.close(timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return sorted(ended)
        recorded = {int(row["job_id"].removeprefix("generation-")): row for row in rows}
        return sorted(number for number in ended if not self.is_recorded(recorded.get(number), completed=number in calls["complete"]))

    def is_recorded(self, row: asyncpg.Record | None, *, completed: bool) -> bool:
        """An order with a deadline is published as a command: nobody accepts it."""
        if row is None or not row["ended"]:
            return False
        return bool(row["accepted"] or self.deadline_seconds) and (not completed or row["steps"] == len(STEPS))

    async def count_leftovers(self) -> int:
        """Messages in the work queues although every order has ended."""
        await self.close_connection()
        channel = await self.channel()
        names = [broker_names.IMAGE_GENERATION_QUEUE, *map(broker_names.work_queue, STEPS)]
        counts = [(await channel.declare_queue(name, passive=True)).declaration_result.message_count or 0 for name in names]
        return sum(counts)


def image_order(number: int, prompt: str) -> bytes:
    data = {"generation_id": number, "prompt": prompt, "parameters": {"size": "64x64", "steps": 4}, "artist_name": "K", "seed": number}
    return json.dumps({"type": "image_generation", "data": data}).encode()


def command_with_deadline(order: bytes, seconds: float) -> aio_pika.Message:
    """The command that the adapter translates an order to, with a deadline, as the gateway publishes it."""
    command = build_adapter().translate(order)
    headers: dict[str, Any] = {Header.DEADLINE: (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}
    body = json.dumps(command.body).encode()
    return aio_pika.Message(
        body, delivery_mode=2, message_id=command.message_id, correlation_id=command.job_id, type="image.v1", headers=headers
    )
