"""ATELIER_SIGN_MESSAGES=on, on the real broker: our processes understand each other, and nobody else is understood."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from pydantic import ValidationError

from actors import ledger
from bus.actor import Context
from bus.amqp import signing
from bus.amqp.messages import OutboundMessage, build_command, build_event
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.request_reply import open_request_client
from bus.amqp.subscriptions import subscribe_events
from bus.dead_letters.replay_message import build_replay_message
from bus.observability import metrics
from bus.settings import BusSettings
from contracts import broker_names
from contracts.event import Event, EventKind
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until

SECRET = "a secret of an installation, which is long enough"


@pytest.fixture
def signed(bus_settings: BusSettings) -> BusSettings:
    return BusSettings.model_validate(bus_settings.model_dump() | {"secret": SECRET, "sign_messages": "on"})


@pytest.fixture
async def publisher(signed: BusSettings) -> AsyncIterator[Publisher]:
    async with open_publisher(signed) as publisher:
        yield publisher


async def fail_once(command: Echo, context: Context) -> Echoed:
    if context.attempt == 1 and command.text == "flaky":
        raise RuntimeError("not yet")
    return Echoed(text=command.text)


async def test_request_reply_retry_and_next_command_are_signed(
    start_worker: StartWorker, signed: BusSettings, publisher: Publisher
) -> None:
    """The reply, the retry that the broker returns through a delay queue, and the event all arrive."""
    actor = echo_actor(fail_once)
    async with (
        start_worker(actor, settings=signed),
        open_request_client(publisher) as client,
        subscribe_events(publisher, "job.#") as events,
    ):
        assert await client.request(actor.step, {"text": "flaky"}, seconds=10, tenant="acme") == {"text": "flaky"}
        assert (await asyncio.wait_for(events.get(), 5)).kind == EventKind.COMPLETED


async def test_unsigned_command_is_dead_lettered_and_causes_nothing(
    start_worker: StartWorker, broker_client: BrokerClient, signed: BusSettings
) -> None:
    """Nothing is published in our name for it: no reply, no event, no command of its slip."""
    ran: list[str] = []

    async def record(command: Echo, context: Context) -> Echoed:
        ran.append(command.text)
        return Echoed(text=command.text)

    actor = echo_actor(record)
    slip = {"on_failure": {"step": "webhook", "arguments": {"kind": "failed", "generation_id": 1}}}
    async with start_worker(actor, settings=signed):
        events = await broker_client.subscribe_events("#")
        headers = {Header.TENANT.value: "acme"}
        await broker_client.publish(actor.step, {"text": "x", "slip": slip}, reply_to=broker_client.reply_queue, headers=headers)
        letter = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
        await asyncio.sleep(0.3)
        webhooks = await broker_client.channel.declare_queue("atelier.webhook", passive=True)
    assert (letter.headers[Header.FAULT_CODE], letter.headers[Header.TENANT]) == ("signature-missing", "acme")
    assert (ran, events.empty(), broker_client.replies.empty(), webhooks.declaration_result.message_count) == ([], True, True, 0)


CHANGES: dict[str, Callable[[OutboundMessage], OutboundMessage]] = {
    "body": lambda message: replace(message, body=b'{"text": "other"}'),
    "message id": lambda message: replace(message, message_id="other"),
    "job": lambda message: replace(message, job_id="other"),
    "reply_to": lambda message: replace(message, reply_to="amq.gen-attacker"),
    "tenant": lambda message: replace(message, headers=message.headers | {Header.TENANT.value: "rival"}),
    "deadline": lambda message: replace(message, headers=message.headers | {Header.DEADLINE.value: "2030-01-01T00:00:00Z"}),
    "detached": lambda message: replace(message, headers=message.headers | {Header.DETACHED.value: True}),
    "attempt": lambda message: replace(message, headers=message.headers | {Header.ATTEMPT.value: 3}),
    "signature": lambda message: replace(message, headers=message.headers | {Header.SIGNATURE.value: "ä" * 64}),
}


@pytest.mark.parametrize("changed", CHANGES)
async def test_changed_command_is_dead_lettered(
    start_worker: StartWorker, broker_client: BrokerClient, signed: BusSettings, changed: str
) -> None:
    """A publisher that reads a signed message and publishes it with one change."""
    actor = echo_actor(fail_once)
    command = build_command(actor.step, {"text": "x"}, message_id="m", job_id="j", headers={Header.TENANT.value: "acme"})
    async with start_worker(actor, settings=signed):
        captured = replace(command, headers=command.headers | signing.signature_headers(command))
        forged = CHANGES[changed](captured)
        await broker_client.publish(
            actor.step,
            forged.body,
            message_id=forged.message_id,
            correlation_id=forged.job_id,
            reply_to=forged.reply_to,
            type=forged.type,
            headers=forged.headers,
        )
        letter = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
    assert letter.headers[Header.FAULT_CODE] == "signature-invalid"


async def test_unsigned_event_and_reply_are_dropped_and_counted(
    start_worker: StartWorker, broker_client: BrokerClient, signed: BusSettings, publisher: Publisher, database_url: str
) -> None:
    """Neither the gateway's subscription nor the ledger sees a forged event; a forged reply completes no request."""
    event = {"kind": "completed", "step": "job", "job_id": "forged", "at": "2026-01-01T00:00:00Z", "message_id": "m"}
    before = _refused("event")
    ledger_actor = ledger.ACTORS[0]
    async with start_worker(ledger_actor, settings=signed), subscribe_events(publisher, "job.#") as events:
        key = broker_names.event_routing_key("job", "completed", "forged")
        await broker_client.publish(key, event, exchange=broker_names.EVENTS_EXCHANGE)
        genuine = build_event(Event.model_validate(event | {"job_id": "genuine", "kind": EventKind.ACCEPTED}), {})
        await publisher.publish(genuine)
        assert (await asyncio.wait_for(events.get(), 5)).job_id == "genuine"
        connection = await asyncpg.connect(database_url)
        query = "select count(*) from atelier.jobs where job_id = any($1)"

        async def genuine_is_recorded() -> bool:
            return bool(await connection.fetchval(query, ["genuine"]))

        await wait_until(genuine_is_recorded)
        assert await connection.fetchval(query, ["forged"]) == 0
        await connection.close()
        assert _refused("event") == before + 1
        dead = await broker_client.channel.declare_queue(broker_names.dead_letter_queue("ledger"), passive=True)
        assert dead.declaration_result.message_count == 0


async def test_forged_reply_completes_no_request(broker_client: BrokerClient, publisher: Publisher) -> None:
    async with open_request_client(publisher) as client:
        with client.expect_reply("job") as reply:
            await broker_client.publish(client.reply_queue, {"text": "forged"}, exchange="", correlation_id="job", type="echo.done.v1")
            await asyncio.sleep(0.3)
            assert not reply.done()


async def test_replayed_dead_letter_is_signed_by_the_relay(
    start_worker: StartWorker, broker_client: BrokerClient, signed: BusSettings, publisher: Publisher
) -> None:
    """The signature of the failed delivery, which covers other headers, is not copied."""
    actor = echo_actor(fail_once)
    async with start_worker(actor, settings=signed):
        events = await broker_client.subscribe_events(f"{actor.step}.completed.#")
        row: dict[str, Any] = {
            "headers": {Header.TENANT.value: "acme", Header.SIGNATURE.value: "of the failed delivery", Header.ATTEMPT.value: 3},
            "replays": 1,
            "target": broker_names.work_queue(actor.step),
            "dead_queue": broker_names.dead_letter_queue(actor.step),
            "properties": None,
            "message_id": "m",
            "sent_as": "m",
            "job_id": "replayed",
            "tenant": "acme",
            "body": json.dumps({"text": "x"}).encode(),
            "edited": False,
            "edited_type": None,
            "type": None,
            "content_type": None,
            "content_encoding": None,
        }
        await publisher.publish(build_replay_message(row))
        assert (await asyncio.wait_for(events.get(), 5))["job_id"] == "replayed"


def test_signing_without_secret_is_refused() -> None:
    with pytest.raises(ValidationError, match="ATELIER_SECRET"):
        BusSettings.model_validate({"amqp_url": "amqp://localhost", "sign_messages": "on"})


def _refused(kind: str) -> float:
    return float(metrics.UNSIGNED_MESSAGES.labels(kind)._value.get())
