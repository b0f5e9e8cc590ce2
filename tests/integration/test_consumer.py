"""The life of a delivery, on the real broker and the real database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from faststream.rabbit import RabbitBroker

from bus.actor import Context, Handler, Resources, Transactional
from bus.errors import TemporaryError
from bus.settings import BusSettings
from contracts import broker_names
from contracts.event import Progress
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor, wait_until


async def echo(command: Echo, context: Context) -> Echoed:
    return Echoed(text=command.text)


async def test_command_is_replied_to_and_emits_events(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """The reply goes to its queue; the step and the job each emit a completed event."""
    actor = echo_actor(echo)
    async with start_worker(actor):
        events = await broker_client.subscribe_events("#")
        await broker_client.publish(actor.step, {"text": "안녕"}, reply_to=broker_client.reply_queue, correlation_id="job-1")
        assert await broker_client.next_reply() == (f"{actor.step}.done.v1", {"text": "안녕"})
        received = {(event["step"], event["kind"]) for event in [await events.get(), await events.get()]}
        assert received == {(actor.step, "completed"), ("job", "completed")}


async def test_failed_command_is_retried_after_delays(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Two failures, then success: attempts are counted, the message keeps its id."""
    runs: list[tuple[int, str]] = []

    async def flaky(command: Echo, context: Context) -> Echoed:
        runs.append((context.attempt, context.message_id))
        if len(runs) < 3:
            raise RuntimeError("not yet")
        return Echoed(text=command.text)

    actor = echo_actor(flaky)
    async with start_worker(actor):
        message_id = await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": "x"}
    assert runs == [(1, message_id), (2, message_id), (3, message_id)]


async def test_retry_returns_to_failed_queue_only(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """A second queue with the same binding receives the message once, however often the first one fails."""

    async def failing(command: Echo, context: Context) -> Echoed:
        raise TemporaryError("again", delay=0.1)

    actor = echo_actor(failing)
    async with start_worker(actor):
        other = await broker_client.channel.declare_queue(exclusive=True)
        await other.bind(broker_names.COMMANDS_EXCHANGE, actor.step)
        await broker_client.publish(actor.step, {"text": "x"})
        await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
        assert (await broker_client.channel.declare_queue(other.name, passive=True)).declaration_result.message_count == 1


async def test_exhausted_command_is_dead_lettered_with_cause(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """The dead letter has its cause, stack and origin in its headers; the fault is the reply."""

    async def failing(command: Echo, context: Context) -> Echoed:
        raise RuntimeError("out of ink")

    actor = echo_actor(failing)
    async with start_worker(actor):
        message_id = await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        reply_type, fault = await broker_client.next_reply()
        dead_letter = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
    assert (reply_type, fault["code"], fault["attempts"]) == ("fault.v1", "attempts-exhausted", 3)
    assert (dead_letter.message_id, dead_letter.body) == (message_id, b'{"text": "x"}')
    assert dead_letter.headers[Header.FAULT_CODE] == "attempts-exhausted"
    assert dead_letter.headers[Header.FAULT_MESSAGE] == "out of ink"
    assert dead_letter.headers[Header.EXCEPTION_TYPE] == "RuntimeError"
    assert "out of ink" in str(dead_letter.headers[Header.EXCEPTION_STACK])
    assert (dead_letter.headers[Header.ORIGIN_EXCHANGE], dead_letter.headers[Header.ORIGIN_ROUTING_KEY]) == (
        broker_names.COMMANDS_EXCHANGE,
        actor.step,
    )
    assert dead_letter.headers[Header.FIRST_FAILED_AT] < dead_letter.headers[Header.LAST_FAILED_AT]


@pytest.mark.parametrize(
    ("body", "properties", "code"),
    [
        (b"{nope", {}, "invalid-json"),
        (b"\xff\xfe", {}, "invalid-json"),
        (b'{"text": 5}', {}, "invalid-message"),
        (b"[" * 100_000, {}, "invalid-json"),
        (b'{"text": "' + b"x" * (1 << 20) + b'"}', {}, "message-too-large"),
        (b'{"text": "x", "slip": {"itinerary": [{"step": "nowhere"}]}}', {}, "unknown-step"),
        (b'{"text": "x"}', {"type": "{step}.v99"}, "unknown-version"),
    ],
)
async def test_invalid_message_is_dead_lettered_at_once(
    start_worker: StartWorker, broker_client: BrokerClient, body: bytes, properties: dict[str, str], code: str
) -> None:
    """It is never retried, and the next message is not affected."""
    actor = echo_actor(echo)
    formatted = {name: value.format(step=actor.step) for name, value in properties.items()}
    async with start_worker(actor):
        await broker_client.publish(actor.step, body, **formatted)
        await broker_client.publish(actor.step, {"text": "next"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": "next"}
        dead_letter = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
    assert dead_letter.headers[Header.FAULT_CODE] == code


async def test_duplicate_message_is_processed_once(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Duplicates are answered from the inbox, also when they arrive at the same time."""
    runs = 0

    async def slow(command: Echo, context: Context) -> Echoed:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.3)
        return Echoed(text=f"run {runs}")

    actor = echo_actor(slow)
    async with start_worker(actor):
        for _ in range(3):
            await broker_client.publish(actor.step, {"text": "x"}, message_id="the-same" + actor.step, reply_to=broker_client.reply_queue)
        assert [(await broker_client.next_reply())[1]["text"] for _ in range(3)] == ["run 1"] * 3
    assert runs == 1


async def test_nul_character_is_processed(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Postgres cannot store U+0000; a result that contains it is marked done at the first attempt. In a command it is replaced."""
    received: list[str] = []

    async def add_nul(command: Echo, context: Context) -> Echoed:
        received.append(command.text)
        return Echoed(text="a\x00b")

    actor = echo_actor(add_nul)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": "a\x00b"}, reply_to=broker_client.reply_queue)
        assert await broker_client.next_reply() == (f"{actor.step}.done.v1", {"text": "a\x00b"})
    assert received == ["a\ufffdb"]


async def test_handler_write_and_inbox_entry_commit_together(
    start_worker: StartWorker, broker_client: BrokerClient, database_url: str
) -> None:
    """A failed write leaves no inbox entry; the next attempt writes once."""
    runs = 0

    async def writing(command: Echo, context: Context) -> Transactional:
        nonlocal runs
        runs += 1
        attempt = runs

        async def write(connection: asyncpg.Connection) -> None:
            await connection.execute("insert into written values ($1)", command.text)
            if attempt == 1:
                raise RuntimeError("broken between write and commit")

        return Transactional(Echoed(text=command.text), write)

    database = await asyncpg.connect(database_url)
    await database.execute("create table if not exists written (text text)")
    actor = echo_actor(writing)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": actor.step}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": actor.step}
    assert await database.fetchval("select count(*) from written where text = $1", actor.step) == 1
    await database.close()
    assert runs == 2


async def test_expired_command_is_not_started(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """It gets a fault as its reply, and is not dead-lettered."""
    runs: list[Any] = []

    async def record(command: Echo, context: Context) -> Echoed:
        runs.append(command)
        return Echoed(text=command.text)

    actor = echo_actor(record)
    past_deadline = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with start_worker(actor):
        await broker_client.publish(
            actor.step, {"text": "x"}, headers={Header.DEADLINE.value: past_deadline}, reply_to=broker_client.reply_queue
        )
        assert (await broker_client.next_reply())[1]["code"] == "deadline-exceeded"
        queue = await broker_client.channel.declare_queue(broker_names.dead_letter_queue(actor.step), passive=True)
        assert queue.declaration_result.message_count == 0
    assert runs == []


async def test_step_without_deadline_runs_after_it(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """A webhook reports an expired job after its deadline."""

    async def notify(command: Echo, context: Context) -> Echoed:
        assert context.deadline is None
        return Echoed(text=command.text)

    actor = echo_actor(notify, enforce_deadline=False)
    past_deadline = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with start_worker(actor):
        await broker_client.publish(
            actor.step, {"text": "x"}, headers={Header.DEADLINE.value: past_deadline}, reply_to=broker_client.reply_queue
        )
        assert (await broker_client.next_reply())[1] == {"text": "x"}


async def test_handler_timeout_is_enforced(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Each attempt ends at the actor's time limit; the fault code after the last is `timeout`."""

    async def hanging(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(60)
        raise AssertionError

    actor = echo_actor(hanging, timeout_seconds=0.1)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1]["code"] == "timeout"


async def test_cancel_stops_only_named_job(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """A control message stops the running command of its job and later ones; another job finishes."""

    async def waiting(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(0.6 if command.text == "other" else 30)
        return Echoed(text=command.text)

    actor = echo_actor(waiting, timeout_seconds=40)
    async with start_worker(actor):
        job_id = f"cancelled-{actor.step}"
        await broker_client.publish(actor.step, {"text": "other"}, reply_to=broker_client.reply_queue)
        await broker_client.publish(actor.step, {"text": "cancelled"}, correlation_id=job_id, reply_to=broker_client.reply_queue)
        await asyncio.sleep(0.2)
        await broker_client.publish("", {"cancel": job_id}, exchange=broker_names.CONTROL_EXCHANGE)
        assert (await broker_client.next_reply())[1]["code"] == "cancelled"
        assert (await broker_client.next_reply())[1] == {"text": "other"}
        await broker_client.publish(actor.step, {"text": "cancelled"}, correlation_id=job_id, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1]["code"] == "cancelled"


async def test_query_is_answered_once_and_never_dead_lettered(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """The caller gets the fault at once; there is nothing to replay."""
    runs = 0

    async def failing(command: Echo, context: Context) -> Echoed:
        nonlocal runs
        runs += 1
        raise RuntimeError("unknown")

    actor = echo_actor(failing, is_query=True)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1]["message"] == "unknown"
        queue = await broker_client.channel.declare_queue(broker_names.dead_letter_queue(actor.step), passive=True)
        assert queue.declaration_result.message_count == 0
    assert runs == 1


async def test_progress_event_reaches_subscribers(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Its routing key is the step's progress key."""

    async def reporting(command: Echo, context: Context) -> Echoed:
        await context.report_progress(Progress(current_step=1, total_steps=4, progress_percent=25))
        return Echoed(text=command.text)

    actor = echo_actor(reporting)
    async with start_worker(actor):
        events = await broker_client.subscribe_events(f"{actor.step}.progress.*")
        await broker_client.publish(actor.step, {"text": "x"})
        assert (await asyncio.wait_for(events.get(), 10))["progress"]["progress_percent"] == 25


async def test_repeatedly_redelivered_message_is_dead_lettered(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """A message that crashes every process that takes it ends as `crash-loop`."""
    actor = echo_actor(echo)
    settings = bus_settings.model_copy(update={"delivery_limit": 2})
    async with start_worker(actor):
        pass
    await broker_client.publish(actor.step, {"text": "x"})
    queue = await broker_client.channel.get_queue(actor.queue, ensure=False)
    for _ in range(5):
        message = await queue.get(timeout=5)
        await message.reject(requeue=True)
    async with start_worker(actor, settings=settings):
        dead_letter = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
    assert dead_letter.headers[Header.FAULT_CODE] == "crash-loop"


async def test_unready_actor_consumes_nothing_until_ready(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Its messages wait in the broker; another actor of the process continues."""
    callbacks: list[Callable[[str | None], None]] = []

    @asynccontextmanager
    async def open_pausable(resources: Resources) -> AsyncIterator[Handler]:
        callbacks.append(resources.set_unready)
        yield echo

    actor, other = replace(echo_actor(echo), open=open_pausable), echo_actor(echo)

    async def consumers(count: int) -> bool:
        queue = await broker_client.channel.declare_queue(actor.queue, passive=True)
        return queue.declaration_result.consumer_count == count

    async with start_worker(actor, other):
        callbacks[0]("the engine is unavailable")
        await wait_until(lambda: consumers(0))
        await broker_client.publish(actor.step, {"text": "waiting"}, reply_to=broker_client.reply_queue)
        await broker_client.publish(other.step, {"text": "continues"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": "continues"}
        callbacks[0](None)
        assert (await broker_client.next_reply())[1] == {"text": "waiting"}


async def test_shutdown_waits_for_running_delivery(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """A run shorter than the grace period is finished and replied to, although the consumer is cancelled."""
    started = asyncio.Event()

    async def slow(command: Echo, context: Context) -> Echoed:
        started.set()
        await asyncio.sleep(0.5)
        return Echoed(text=command.text)

    actor = echo_actor(slow)
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        await started.wait()
    assert (await broker_client.next_reply())[1] == {"text": "x"}


async def test_shutdown_while_consuming_begins_lets_delivery_finish(
    start_worker: StartWorker, broker_client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while the client still starts its subscribers, the first of which has a delivery already."""
    consuming, running = asyncio.Event(), asyncio.Event()
    start = RabbitBroker.start

    async def start_for_long(broker: RabbitBroker) -> None:
        await start(broker)
        consuming.set()
        await asyncio.sleep(60)

    async def slow(command: Echo, context: Context) -> Echoed:
        running.set()
        await asyncio.sleep(0.3)
        return Echoed(text=command.text)

    actor = echo_actor(slow)

    async def serve() -> None:
        async with start_worker(actor):
            pass

    monkeypatch.setattr(RabbitBroker, "start", start_for_long)
    serving = asyncio.create_task(serve())
    await asyncio.wait_for(consuming.wait(), 10)
    await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
    await asyncio.wait_for(running.wait(), 10)
    serving.cancel()
    await asyncio.wait([serving], timeout=10)
    assert (await broker_client.next_reply(2))[1] == {"text": "x"}


async def test_shutdown_requeues_delivery_after_grace_period(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """The unfinished delivery returns to the queue, and the next process completes it."""
    started = asyncio.Event()

    async def endless(command: Echo, context: Context) -> Echoed:
        started.set()
        await asyncio.sleep(60)
        raise AssertionError

    actor = echo_actor(endless, timeout_seconds=60)
    async with start_worker(actor, settings=bus_settings.model_copy(update={"grace_seconds": 0.1})):
        await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue)
        await started.wait()
    quick = echo_actor(echo)
    async with start_worker(type(actor)(**{**vars(actor), "open": quick.open})):
        assert (await broker_client.next_reply())[1] == {"text": "x"}
