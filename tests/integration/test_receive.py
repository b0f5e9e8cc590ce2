"""The life of a delivery, on the real broker and the real database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from bus.actor import Context, Handler, Tools, Transactional
from bus.errors import TemporaryError
from bus.settings import BusSettings
from contracts import channels
from contracts.event import Progress
from contracts.wire import Header
from tests.integration.conftest import Customer, Echo, Echoed, Workshop, echo_actor, soon


async def echo(command: Echo, context: Context) -> Echoed:
    return Echoed(text=command.text)


async def test_a_command_is_answered_and_told(workshop: Workshop, customer: Customer) -> None:
    """A reply goes to whoever asked, a completed event to whoever listens, for the step and for the job."""
    actor = echo_actor(echo)
    async with workshop(actor):
        events = await customer.events("#")
        await customer.send(actor.step, {"text": "안녕"}, reply_to=customer.reply_queue, correlation_id="job-1")
        assert await customer.reply() == (f"{actor.step}.done.v1", {"text": "안녕"})
        told = {(event["step"], event["kind"]) for event in [await events.get(), await events.get()]}
        assert told == {(actor.step, "completed"), ("job", "completed")}


async def test_it_is_tried_again_on_the_ladder_and_then_works(workshop: Workshop, customer: Customer) -> None:
    """Two failures, then success: the attempts are counted and the message keeps its id."""
    runs: list[tuple[int, str]] = []

    async def shaky(command: Echo, context: Context) -> Echoed:
        runs.append((context.attempt, context.message_id))
        if len(runs) < 3:
            raise RuntimeError("not yet")
        return Echoed(text=command.text)

    actor = echo_actor(shaky)
    async with workshop(actor):
        message_id = await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1] == {"text": "x"}
    assert runs == [(1, message_id), (2, message_id), (3, message_id)]


async def test_a_retry_goes_to_the_queue_that_failed_alone(workshop: Workshop, customer: Customer) -> None:
    """A second queue on the same topic sees the message once, however often the first one fails."""

    async def failing(command: Echo, context: Context) -> Echoed:
        raise TemporaryError("again", delay=0.1)

    actor = echo_actor(failing)
    async with workshop(actor):
        other = await customer.channel.declare_queue(exclusive=True)
        await other.bind(channels.COMMANDS, actor.step)
        await customer.send(actor.step, {"text": "x"})
        await customer.letter_in(channels.dead_queue(actor.step))
        assert (await customer.channel.declare_queue(other.name, passive=True)).declaration_result.message_count == 1


async def test_after_the_last_attempt_it_is_buried_with_its_cause(workshop: Workshop, customer: Customer) -> None:
    """The dead letter says what, why, how often, and where it came from; whoever waits gets the fault."""

    async def failing(command: Echo, context: Context) -> Echoed:
        raise RuntimeError("the well is dry")

    actor = echo_actor(failing)
    async with workshop(actor):
        message_id = await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        kind, fault = await customer.reply()
        letter = await customer.letter_in(channels.dead_queue(actor.step))
    assert (kind, fault["code"], fault["attempts"]) == ("fault.v1", "attempts-exhausted", 3)
    assert (letter.message_id, letter.body) == (message_id, b'{"text": "x"}')
    assert letter.headers[Header.FAULT_CODE] == "attempts-exhausted"
    assert letter.headers[Header.FAULT_MESSAGE] == "the well is dry"
    assert letter.headers[Header.EXCEPTION_TYPE] == "RuntimeError"
    assert "the well is dry" in str(letter.headers[Header.EXCEPTION_STACK])
    assert (letter.headers[Header.ORIGIN_EXCHANGE], letter.headers[Header.ORIGIN_KEY]) == (channels.COMMANDS, actor.step)
    assert letter.headers[Header.FIRST_FAILED] < letter.headers[Header.LAST_FAILED]


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
async def test_poison_is_buried_at_once_and_its_neighbour_is_served(
    workshop: Workshop, customer: Customer, body: bytes, properties: dict[str, str], code: str
) -> None:
    """What cannot be read is never tried, and what comes after it is not disturbed."""
    actor = echo_actor(echo)
    said = {name: value.format(step=actor.step) for name, value in properties.items()}
    async with workshop(actor):
        await customer.send(actor.step, body, **said)
        await customer.send(actor.step, {"text": "next"}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1] == {"text": "next"}
        letter = await customer.letter_in(channels.dead_queue(actor.step))
    assert letter.headers[Header.FAULT_CODE] == code


async def test_a_message_that_comes_twice_is_done_once(workshop: Workshop, customer: Customer) -> None:
    """The second delivery is answered from the inbox, also when both come at the same moment."""
    runs = 0

    async def slow(command: Echo, context: Context) -> Echoed:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.3)
        return Echoed(text=f"run {runs}")

    actor = echo_actor(slow)
    async with workshop(actor):
        for _ in range(3):
            await customer.send(actor.step, {"text": "x"}, message_id="the-same" + actor.step, reply_to=customer.reply_queue)
        assert [(await customer.reply())[1]["text"] for _ in range(3)] == ["run 1"] * 3
    assert runs == 1


async def test_a_nul_character_is_no_obstacle(workshop: Workshop, customer: Customer) -> None:
    """Postgres cannot keep U+0000; a result with one is remembered all the same, the first time."""
    actor = echo_actor(echo)
    async with workshop(actor):
        await customer.send(actor.step, {"text": "a\x00b"}, reply_to=customer.reply_queue)
        assert await customer.reply() == (f"{actor.step}.done.v1", {"text": "a\x00b"})


async def test_the_write_and_the_memory_are_one_fact(workshop: Workshop, customer: Customer, database_url: str) -> None:
    """A write that fails leaves no memory; the run after it writes once."""
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
    async with workshop(actor):
        await customer.send(actor.step, {"text": actor.step}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1] == {"text": actor.step}
    assert await database.fetchval("select count(*) from written where text = $1", actor.step) == 1
    await database.close()
    assert runs == 2


async def test_work_past_its_deadline_never_begins(workshop: Workshop, customer: Customer) -> None:
    """Expired work is answered with a fault and is no dead letter."""
    runs: list[Any] = []

    async def noting(command: Echo, context: Context) -> Echoed:
        runs.append(command)
        return Echoed(text=command.text)

    actor = echo_actor(noting)
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with workshop(actor):
        await customer.send(actor.step, {"text": "x"}, headers={Header.DEADLINE.value: past}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1]["code"] == "deadline-exceeded"
        queue = await customer.channel.declare_queue(channels.dead_queue(actor.step), passive=True)
        assert queue.declaration_result.message_count == 0
    assert runs == []


async def test_who_tells_has_no_deadline(workshop: Workshop, customer: Customer) -> None:
    """That the time was up is told after the time is up."""

    async def telling(command: Echo, context: Context) -> Echoed:
        assert context.deadline is None
        return Echoed(text=command.text)

    actor = echo_actor(telling, expires=False)
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with workshop(actor):
        await customer.send(actor.step, {"text": "x"}, headers={Header.DEADLINE.value: past}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1] == {"text": "x"}


async def test_a_handler_that_hangs_is_stopped_at_its_time(workshop: Workshop, customer: Customer) -> None:
    """Each run ends at the actor's limit; after the last the cause is `timeout`."""

    async def hanging(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(60)
        raise AssertionError

    actor = echo_actor(hanging, timeout_seconds=0.1)
    async with workshop(actor):
        await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1]["code"] == "timeout"


async def test_cancel_stops_the_one_job_and_no_other(workshop: Workshop, customer: Customer) -> None:
    """A control message ends the named job at once, also for its commands still to come; its neighbour finishes."""

    async def waiting(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(0.6 if command.text == "stays" else 30)
        return Echoed(text=command.text)

    actor = echo_actor(waiting, timeout_seconds=40)
    async with workshop(actor):
        gone = f"gone-{actor.step}"
        await customer.send(actor.step, {"text": "stays"}, reply_to=customer.reply_queue)
        await customer.send(actor.step, {"text": "goes"}, correlation_id=gone, reply_to=customer.reply_queue)
        await asyncio.sleep(0.2)
        await customer.send("", {"cancel": gone}, exchange=channels.CONTROL)
        assert (await customer.reply())[1]["code"] == "cancelled"
        assert (await customer.reply())[1] == {"text": "stays"}
        await customer.send(actor.step, {"text": "goes"}, correlation_id=gone, reply_to=customer.reply_queue)
        assert (await customer.reply())[1]["code"] == "cancelled"


async def test_a_question_is_answered_once_and_never_buried(workshop: Workshop, customer: Customer) -> None:
    """Whoever asks gets the fault at once; there is nothing to replay."""
    runs = 0

    async def failing(command: Echo, context: Context) -> Echoed:
        nonlocal runs
        runs += 1
        raise RuntimeError("no idea")

    actor = echo_actor(failing, question=True)
    async with workshop(actor):
        await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1]["message"] == "no idea"
        queue = await customer.channel.declare_queue(channels.dead_queue(actor.step), passive=True)
        assert queue.declaration_result.message_count == 0
    assert runs == 1


async def test_progress_reaches_whoever_listens(workshop: Workshop, customer: Customer) -> None:
    """A report becomes an event under the step's progress key."""

    async def reporting(command: Echo, context: Context) -> Echoed:
        await context.report(Progress(current_step=1, total_steps=4, progress_percent=25))
        return Echoed(text=command.text)

    actor = echo_actor(reporting)
    async with workshop(actor):
        events = await customer.events(f"{actor.step}.progress.*")
        await customer.send(actor.step, {"text": "x"})
        assert (await asyncio.wait_for(events.get(), 10))["progress"]["progress_percent"] == 25


async def test_a_delivery_that_keeps_coming_back_is_buried(workshop: Workshop, customer: Customer, bus_settings: BusSettings) -> None:
    """Work that kills whoever takes it ends as `crash-loop` instead of going round for ever."""
    actor = echo_actor(echo)
    settings = bus_settings.model_copy(update={"delivery_limit": 2})
    async with workshop(actor):
        pass
    await customer.send(actor.step, {"text": "x"})
    queue = await customer.channel.get_queue(actor.queue, ensure=False)
    for _ in range(5):
        message = await queue.get(timeout=5)
        await message.reject(requeue=True)
    async with workshop(actor, settings=settings):
        letter = await customer.letter_in(channels.dead_queue(actor.step))
    assert letter.headers[Header.FAULT_CODE] == "crash-loop"


async def test_an_actor_that_cannot_work_takes_nothing_until_it_can(workshop: Workshop, customer: Customer) -> None:
    """Its orders wait in the broker meanwhile, untouched; its neighbour goes on."""
    told: list[Callable[[str | None], None]] = []

    @asynccontextmanager
    async def open_fickle(tools: Tools) -> AsyncIterator[Handler]:
        told.append(tools.unready)
        yield echo

    actor, neighbour = replace(echo_actor(echo), open=open_fickle), echo_actor(echo)

    async def consumers(count: int) -> bool:
        queue = await customer.channel.declare_queue(actor.queue, passive=True)
        return queue.declaration_result.consumer_count == count

    async with workshop(actor, neighbour):
        told[0]("the engine is away")
        await soon(lambda: consumers(0))
        await customer.send(actor.step, {"text": "waits"}, reply_to=customer.reply_queue)
        await customer.send(neighbour.step, {"text": "goes on"}, reply_to=customer.reply_queue)
        assert (await customer.reply())[1] == {"text": "goes on"}
        told[0](None)
        assert (await customer.reply())[1] == {"text": "waits"}


async def test_leaving_lets_running_work_finish(workshop: Workshop, customer: Customer) -> None:
    """Work shorter than the grace is done and answered, although the consumer is gone."""
    begun = asyncio.Event()

    async def slow(command: Echo, context: Context) -> Echoed:
        begun.set()
        await asyncio.sleep(0.5)
        return Echoed(text=command.text)

    actor = echo_actor(slow)
    async with workshop(actor):
        await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        await begun.wait()
    assert (await customer.reply())[1] == {"text": "x"}


async def test_leaving_gives_back_what_outlasts_the_grace(workshop: Workshop, customer: Customer, bus_settings: BusSettings) -> None:
    """Unfinished work goes back to the queue, and the next process does it."""
    begun = asyncio.Event()

    async def endless(command: Echo, context: Context) -> Echoed:
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError

    actor = echo_actor(endless, timeout_seconds=60)
    async with workshop(actor, settings=bus_settings.model_copy(update={"grace_seconds": 0.1})):
        await customer.send(actor.step, {"text": "x"}, reply_to=customer.reply_queue)
        await begun.wait()
    quick = echo_actor(echo)
    async with workshop(type(actor)(**{**vars(actor), "open": quick.open})):
        assert (await customer.reply())[1] == {"text": "x"}
