"""Hostile messages in a dead-letter queue: each becomes a letter with a cause, and can be replayed."""

import asyncio
import struct
from dataclasses import replace as with_fields
from datetime import datetime

import asyncpg
import pytest
from aio_pika.abc import AbstractIncomingMessage
from pamqp.header import ContentHeader

from bus.dead_letters import replay
from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.repository import DeadLetterRepository
from contracts import broker_names
from contracts.dead_letter import ReplayDeadLetters, Selection
from tests.support.broker_client import BrokerClient, echo_actor, wait_until
from tests.support.dead_letter_fixtures import (
    FlakyHandler,
    StartWorkerWithIngest,
    queue_size,
    wait_for_dead_letters,
)
from tests.support.hostile_messages import UNDECODABLE, HostileMessage, hostile_messages, publish_all

pytestmark = pytest.mark.timeout(120)


def message_id_of(message: HostileMessage) -> str:
    """Its own id, or its body, from which a missing one is derived. Messages with one id are one letter."""
    header = ContentHeader()
    header.unmarshal(struct.pack(">HHQ", 60, 0, 0) + message.properties)
    return str(header.properties.message_id or message.body)


async def test_hostile_dead_letter_is_stored_with_cause_and_replayed(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    pool: asyncpg.Pool,
    amqp_url: str,
) -> None:
    """Published to the dead-letter queue itself. Then all are replayed: each fails again in the work queue, and none stops the relay."""
    actor = echo_actor(FlakyHandler())
    messages = hostile_messages(lambda number: b"{%d" % number)
    async with start_worker_with_ingest(actor):
        await asyncio.to_thread(publish_all, amqp_url, messages, broker_names.dead_letter_queue(actor.step))
        found = await wait_for_dead_letters(repository, len({message_id_of(message) for message in messages}), step=actor.step)
        letters = {letter.body: letter for letter in found}
        undecodable = {message.body.decode() for message in messages if message.cause == UNDECODABLE}
        assert {body for body, letter in letters.items() if letter.code == UNDECODABLE} == undecodable
        assert all(letter.code and letter.target for letter in letters.values())
        await replay.stage(pool, ReplayDeadLetters(selection=Selection(step=actor.step), dry_run=False))
        on_their_way = "select count(*) from atelier.dead_letters where state = 'replay-requested' and step = $1"

        async def none_is_on_its_way() -> bool:
            return not await pool.fetchval(on_their_way, actor.step)

        await wait_until(none_is_on_its_way, 20)
    assert await queue_size(broker_client, broker_names.dead_letter_queue(actor.step)) == 0, "a message was left unacknowledged"


async def test_letter_that_the_database_refuses_is_stored_as_its_body(
    start_worker_with_ingest: StartWorkerWithIngest,
    broker_client: BrokerClient,
    repository: DeadLetterRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else its write would be repeated for ever, and a hundred such letters would stop the ingest."""
    actor = echo_actor(FlakyHandler())
    from_message = DeadLetterRecord.from_message

    def with_refused_headers(message: AbstractIncomingMessage, queue: str, now: datetime) -> DeadLetterRecord:
        return with_fields(from_message(message, queue, now), code="a\0")

    monkeypatch.setattr(DeadLetterRecord, "from_message", with_refused_headers)
    async with start_worker_with_ingest(actor):
        await broker_client.publish(actor.step, {"text": "x"})
        [letter] = await wait_for_dead_letters(repository, step=actor.step)
    assert (letter.code, letter.body, letter.target) == ("dead-letter-unstorable", '{"text": "x"}', actor.queue)
    assert await queue_size(broker_client, broker_names.dead_letter_queue(actor.step)) == 0
