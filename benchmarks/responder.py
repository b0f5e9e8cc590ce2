"""The responder of the gateway benchmark, in bare aio-pika, the same for every side: `python -m benchmarks.responder` with AMQP_URL.

Replies to `job.get` at once, to `consult` after two seconds.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from functools import partial

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from benchmarks.unpatched import require_unpatched_libraries
from bus.amqp.topology import declare_command_queues
from bus.settings import BusSettings
from contracts import broker_names
from contracts.job import Job

SLOW_REPLY_SECONDS = 2.0
SAMPLE_JOB = Job(
    job_id="bench",
    kind="bench",
    state="completed",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    updated_at=datetime(2026, 1, 1, tzinfo=UTC),
)
STEPS = ("job.get", "job.list", "consult")


async def send_reply(channel: AbstractChannel, body: bytes, seconds: float, message: AbstractIncomingMessage) -> None:
    if seconds:
        await asyncio.sleep(seconds)
    reply = aio_pika.Message(body, correlation_id=message.correlation_id, content_type="application/json", type="done.v1")
    await channel.default_exchange.publish(reply, message.reply_to or "", mandatory=False)


async def main() -> None:
    async with await aio_pika.connect(BusSettings().broker_url) as connection:
        consuming, replying = await connection.channel(), await connection.channel(publisher_confirms=False)
        await consuming.set_qos(2000)
        await declare_command_queues(consuming, STEPS)
        job = SAMPLE_JOB.model_dump_json().encode()
        for step, body, seconds in [("job.get", job, 0.0), ("consult", json.dumps({"prediction": "x"}).encode(), SLOW_REPLY_SECONDS)]:
            queue = await consuming.get_queue(broker_names.work_queue(step), ensure=False)
            await queue.consume(partial(send_reply, replying, body, seconds), no_ack=True)
        require_unpatched_libraries()
        sys.stderr.write("responder.ready\n")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
