"""The upgrade to keyed ids and bound inbox entries, on the real broker and database: what was done before it is not done again.

An earlier release derived the ids without a secret and stored an entry under the message id alone. Its messages and rows are written here
as it wrote them.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from bus import ids
from bus.actor import Actor, Context
from bus.amqp.jobs import JobRequest
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.ids import derived_id, public_id
from bus.persistence.inbox import LIVENESS_LOCK_CLASS, SCHEMA
from bus.settings import BusSettings
from contracts import broker_names
from contracts.slip import Slip, SlipStep
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until

SECRET = "a secret of an installation, which is long enough"


@dataclass
class CountingStep:
    """An echo under the name of a real step, whose runs are recorded."""

    step: str
    seconds: float = 0.0
    runs: list[str] = field(default_factory=list)

    async def __call__(self, command: Echo, context: Context) -> Echoed:
        self.runs.append(command.text)
        await asyncio.sleep(self.seconds)
        return Echoed(text=command.text)

    @property
    def actor(self) -> Actor:
        return replace(echo_actor(self), step=self.step)


@pytest.fixture
def keyed(bus_settings: BusSettings) -> BusSettings:
    """The settings after the upgrade."""
    return BusSettings.model_validate(bus_settings.model_dump() | {"secret": SECRET})


@pytest.fixture
async def publisher(keyed: BusSettings) -> AsyncIterator[Publisher]:
    async with open_publisher(keyed) as publisher:
        yield publisher


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    await connection.execute(SCHEMA)
    yield connection
    await connection.close()


async def store_former_result(connection: asyncpg.Connection, step: str, message_id: str, text: str) -> None:
    """A row of the earlier release."""
    await connection.execute(
        "insert into atelier.inbox (step, message_id, result, finished_at) values ($1, $2, jsonb_build_object('text', $3::text), now())",
        step,
        message_id,
        text,
    )


def order(job_id: str, *steps: str) -> JobRequest:
    itinerary = [SlipStep(step=step, arguments={"text": f"{step} of {job_id}"}) for step in steps]
    return JobRequest(job_id, "itinerary", Slip(itinerary=itinerary), datetime.now(UTC) + timedelta(minutes=5), tenant="acme")


def as_formerly(message: OutboundMessage) -> OutboundMessage:
    """The command as the earlier release published it: the unkeyed id, and no former one."""
    headers = {name: value for name, value in message.headers.items() if name != Header.FORMER_ID}
    return replace(message, message_id=public_id(message.job_id, "order"), headers=headers)


async def is_idle(client: BrokerClient, *steps: str) -> bool:
    queues = [await client.channel.declare_queue(broker_names.work_queue(step), passive=True) for step in steps]
    return not any(queue.declaration_result.message_count for queue in queues)


@pytest.mark.parametrize("first", ["former", "keyed", "both at once"])
async def test_order_published_before_and_after_upgrade_is_done_once(
    start_worker: StartWorker, broker_client: BrokerClient, publisher: Publisher, keyed: BusSettings, first: str
) -> None:
    """Whichever of the two is delivered first, every step of the chain runs once."""
    watermark, upload = CountingStep("watermark", 0.3), CountingStep("upload", 0.1)
    new = order(f"job-{first}", "watermark", "upload").command_message()
    former = as_formerly(new)
    assert new.message_id != former.message_id
    async with start_worker(watermark.actor, upload.actor, settings=keyed):
        for batch in {"former": [[former], [new]], "keyed": [[new], [former]], "both at once": [[former, new]]}[first]:
            await publisher.publish(*batch)
            await asyncio.sleep(0.0 if len(batch) == 2 else 1.0)
        await wait_until(lambda: is_idle(broker_client, "watermark", "upload"))
        await asyncio.sleep(1.5)
    assert (watermark.runs, upload.runs) == ([f"watermark of job-{first}"], [f"upload of job-{first}"])


async def test_former_command_in_queue_and_repeated_next_command_are_done_once(
    start_worker: StartWorker, broker_client: BrokerClient, publisher: Publisher, keyed: BusSettings, connection: asyncpg.Connection
) -> None:
    """The next command of the earlier release is still in its queue when the step before it is delivered again."""
    watermark, upload = CountingStep("watermark"), CountingStep("upload")
    first = as_formerly(order("job-between", "watermark", "upload").command_message())
    await store_former_result(connection, "watermark", first.message_id, "watermark of job-between")
    slip = {"variables": {"text": "watermark of job-between"}, "log": [_log_entry("2026-01-01T00:00:00Z")]}
    next_command = replace(
        first,
        routing_key="upload",
        message_id=public_id(first.message_id, "next", "upload"),
        type="upload.v1",
        body=_json({"text": "upload of job-between", "slip": slip}),
    )
    async with start_worker(watermark.actor, upload.actor, settings=keyed):
        await publisher.publish(next_command, first)
        await wait_until(lambda: is_idle(broker_client, "watermark", "upload"))
        await asyncio.sleep(1)
    assert (watermark.runs, upload.runs) == ([], ["upload of job-between"])


async def test_half_done_chain_continues_where_it_stopped(
    start_worker: StartWorker, broker_client: BrokerClient, publisher: Publisher, keyed: BusSettings, connection: asyncpg.Connection
) -> None:
    """Two of three steps are done in rows of the earlier release; after the upgrade its order is delivered again, by either scheme."""
    watermark, upload, webhook = CountingStep("watermark"), CountingStep("upload"), CountingStep("webhook")
    new = order("job-half", "watermark", "upload", "webhook").command_message()
    former = as_formerly(new)
    await store_former_result(connection, "watermark", former.message_id, "watermark of job-half")
    await store_former_result(connection, "upload", public_id(former.message_id, "next", "upload"), "upload of job-half")
    async with start_worker(watermark.actor, upload.actor, webhook.actor, settings=keyed):
        await publisher.publish(former)
        await publisher.publish(new)
        await wait_until(lambda: is_idle(broker_client, "watermark", "upload", "webhook"))
        await asyncio.sleep(1)
    assert (watermark.runs, upload.runs, webhook.runs) == ([], [], ["webhook of job-half"])


async def test_former_result_is_sent_to_no_reply_queue(
    start_worker: StartWorker, broker_client: BrokerClient, keyed: BusSettings, connection: asyncpg.Connection
) -> None:
    """A row of the earlier release is bound to no content: who names its id may be another publisher."""
    watermark = CountingStep("watermark")
    await store_former_result(connection, "watermark", "of-another", "secret of another")
    async with start_worker(watermark.actor, settings=keyed):
        events = await broker_client.subscribe_events("watermark.#")
        for body in ({"text": "attack"}, {"text": "attack", "slip": {"itinerary": [{"step": "upload", "arguments": {"text": "x"}}]}}):
            await broker_client.publish("watermark", body, message_id="of-another", reply_to=broker_client.reply_queue)
            assert (await asyncio.wait_for(events.get(), 5))["kind"] == "completed"
        assert (await broker_client.take_message("atelier.upload")).reply_to is None
    assert broker_client.replies.empty()
    assert watermark.runs == []


async def test_former_message_that_still_runs_elsewhere_is_waited_for(
    start_worker: StartWorker, broker_client: BrokerClient, keyed: BusSettings, connection: asyncpg.Connection
) -> None:
    """During a rolling upgrade a process of the earlier release may still run it."""
    watermark = CountingStep("watermark")
    await connection.execute("select pg_advisory_lock($1, $2)", LIVENESS_LOCK_CLASS, 77)
    await connection.execute("insert into atelier.inbox (step, message_id, owner) values ('watermark', 'running', 77)")
    async with start_worker(watermark.actor, settings=keyed):
        await broker_client.publish("watermark", {"text": "x"}, message_id="running")
        await asyncio.sleep(1)
        assert watermark.runs == []
        await connection.execute("select pg_advisory_unlock($1, $2)", LIVENESS_LOCK_CLASS, 77)
        await wait_until(lambda: _has_run(watermark))


async def _has_run(step: CountingStep) -> bool:
    return bool(step.runs)


async def test_next_id_cannot_be_used_up_beforehand(
    start_worker: StartWorker, broker_client: BrokerClient, publisher: Publisher, keyed: BusSettings
) -> None:
    """Neither the former nor the keyed id of the next command, with other content, keeps the next step from running."""
    watermark, upload = CountingStep("watermark"), CountingStep("upload")
    victim = order("job-victim", "watermark", "upload").command_message()
    former_next = public_id(public_id("job-victim", "order"), "next", "upload")
    async with start_worker(watermark.actor, upload.actor, settings=keyed):
        for guess in (former_next, derived_id(victim.message_id, "next", "upload")):
            headers = {Header.TENANT.value: "acme", Header.FORMER_ID.value: former_next}
            await broker_client.publish("upload", {"text": "attack"}, message_id=guess, correlation_id="job-victim", headers=headers)
        await publisher.publish(victim)
        await wait_until(lambda: is_idle(broker_client, "watermark", "upload"))
        await asyncio.sleep(1)
    assert upload.runs[-1] == "upload of job-victim"
    assert set(upload.runs) == {"attack", "upload of job-victim"}


async def test_same_root_id_with_other_content_causes_other_ids(
    start_worker: StartWorker, broker_client: BrokerClient, keyed: BusSettings
) -> None:
    """Else a publisher could let our own worker compute the next id of another's message."""
    watermark = CountingStep("watermark")
    async with start_worker(watermark.actor, settings=keyed):
        for text in ("one", "two"):
            body = {"text": text, "slip": {"itinerary": [{"step": "upload", "arguments": {"text": "x"}}]}}
            await broker_client.publish("watermark", body, message_id="root", correlation_id="job")
        assert (await broker_client.take_message("atelier.upload")).message_id != (
            await broker_client.take_message("atelier.upload")
        ).message_id


async def test_workers_without_variable_agree_on_secret_in_database(
    start_worker: StartWorker, broker_client: BrokerClient, connection: asyncpg.Connection
) -> None:
    watermark = CountingStep("watermark")
    derived = []
    for _ in range(2):
        ids.use_secret(None)
        async with start_worker(watermark.actor):
            assert ids.has_secret()
            derived.append(derived_id("m", "next"))
    assert derived[0] == derived[1] != public_id("m", "next")
    assert await connection.fetchval("select count(*) from atelier.installation") == 1


def _log_entry(at: str) -> dict[str, Any]:
    return {"step": "watermark", "worker": "earlier", "started_at": at, "seconds": 1.0}


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
