"""The simulation predicts the mean wait for a real worker on the real broker."""

import asyncio
import random
from datetime import UTC, datetime

from benchmarks.scaling import simulate
from bus.actor import Context
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor

SECONDS, RATE, ORDERS = 0.2, 8.0, 160
"""Two slots with 80% load."""


async def test_simulated_mean_wait_matches_measurement(broker_client: BrokerClient, start_worker: StartWorker) -> None:
    sent: dict[str, float] = {}
    waits: list[float] = []

    async def handle(command: Echo, context: Context) -> Echoed:
        waits.append(asyncio.get_running_loop().time() - sent[command.text])
        await asyncio.sleep(SECONDS)
        return Echoed(text=command.text)

    actor, rng = echo_actor(handle, prefetch=2, deduplicate=False), random.Random(5)
    async with start_worker(actor):
        for number in range(ORDERS):
            sent[str(number)] = asyncio.get_running_loop().time()
            await broker_client.publish(actor.step, {"text": str(number)}, timestamp=datetime.now(UTC))
            await asyncio.sleep(rng.expovariate(RATE))
        async with asyncio.timeout(20):
            while len(waits) < ORDERS:
                await asyncio.sleep(0.1)
    predicted = simulate([SECONDS], rate=RATE, replicas=2, orders=100_000).mean_wait
    assert predicted / 3 < sum(waits) / ORDERS < predicted * 3
