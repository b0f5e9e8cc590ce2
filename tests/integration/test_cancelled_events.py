"""Events of a job that is cancelled are handled: one of them reports the cancellation. On the real broker and the real inbox."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from bus.actor import Context
from contracts import broker_names
from contracts.event import Event, EventKind
from contracts.wire import Result
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor

SECONDS = 10


class Recorded(Result):
    pass


async def test_event_of_a_cancelled_job_is_handled(start_worker: StartWorker, broker_client: BrokerClient) -> None:
    """Whether it is running when the job is cancelled, or arrives later, as that of the command which the cancellation has stopped."""
    job_id, handled = uuid4().hex, asyncio.Queue[str]()
    running, command_running, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(command: Echo, context: Context) -> Echoed:
        command_running.set()
        await asyncio.sleep(SECONDS)
        return Echoed(text=command.text)

    async def record(event: Event, context: Context) -> Recorded:
        running.set()
        await cancelled.wait()
        handled.put_nowait(event.message_id)
        return Recorded()

    actor = echo_actor(run)
    steps = {"command": Event, "result": Recorded, "exchange": broker_names.EVENTS_EXCHANGE, "emit_events": False}
    recorder = replace(echo_actor(record), **steps, routing_keys=(f"{actor.step}.cancelled.#",))

    event = Event(kind=EventKind.CANCELLED, step=actor.step, job_id=job_id, at=datetime.now(UTC), message_id="before", worker="w")
    key, body = broker_names.event_routing_key(actor.step, "cancelled", job_id), event.model_dump_json(exclude_none=True).encode()
    async with start_worker(actor, recorder):
        await broker_client.publish(key, body, exchange=broker_names.EVENTS_EXCHANGE, correlation_id=job_id)
        message_id = await broker_client.publish(actor.step, {"text": "x"}, correlation_id=job_id, reply_to=broker_client.reply_queue)
        await asyncio.wait_for(asyncio.gather(running.wait(), command_running.wait()), SECONDS)
        await broker_client.publish("", {"cancel": job_id}, exchange=broker_names.CONTROL_EXCHANGE)
        assert (await broker_client.next_reply())[1]["code"] == "cancelled"
        cancelled.set()
        assert [await asyncio.wait_for(handled.get(), SECONDS) for _ in range(2)] == ["before", message_id]
