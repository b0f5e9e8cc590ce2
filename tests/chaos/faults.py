"""The faults. Each is one thing that goes wrong while orders are under way, and is over when its function returns."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from contracts import channels
from tests.chaos.site import GRACE_SECONDS, Site

Fault = Callable[[Site, random.Random], Awaitable[None]]


async def nothing(site: Site, chance: random.Random) -> None:
    """No fault: what the site does when left alone."""


async def actors_killed(site: Site, chance: random.Random) -> None:
    for _ in range(4):
        site.signal(chance.choice(list(site.staff)), signal.SIGKILL)
        await asyncio.sleep(chance.uniform(0.3, 1.2))


async def actors_restarted(site: Site, chance: random.Random) -> None:
    """SIGTERM to one after another, as a rolling deployment does."""
    for name in list(site.staff):
        site.signal(name, signal.SIGTERM)
        await asyncio.sleep(GRACE_SECONDS + 0.5)


async def broker_killed(site: Site, chance: random.Random) -> None:
    await asyncio.to_thread(site.node.kill)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(site.node.start)


async def broker_restarted(site: Site, chance: random.Random) -> None:
    await asyncio.to_thread(site.node.restart)


async def connections_closed(site: Site, chance: random.Random) -> None:
    await asyncio.to_thread(site.control, "close_all_connections", "chaos")


async def broker_line_cut(site: Site, chance: random.Random) -> None:
    for _ in range(3):
        site.broker_line.cut()
        await asyncio.sleep(chance.uniform(0.2, 1.0))


async def broker_line_stalled(site: Site, chance: random.Random) -> None:
    """Longer than three heartbeats: both ends must notice by themselves."""
    site.broker_line.flowing.clear()
    await asyncio.sleep(10)
    site.broker_line.flowing.set()


async def broker_line_slow(site: Site, chance: random.Random) -> None:
    site.broker_line.delay_seconds = 0.2
    await asyncio.sleep(5)
    site.broker_line.delay_seconds = 0


async def database_killed(site: Site, chance: random.Random) -> None:
    await asyncio.to_thread(site.postgres.kill)
    await asyncio.sleep(4)
    await asyncio.to_thread(site.postgres.start)


async def database_line_cut(site: Site, chance: random.Random) -> None:
    for _ in range(3):
        site.database_line.cut()
        await asyncio.sleep(chance.uniform(0.2, 1.0))


async def database_line_stalled(site: Site, chance: random.Random) -> None:
    site.database_line.flowing.clear()
    await asyncio.sleep(5)
    site.database_line.flowing.set()


async def store_refusing(site: Site, chance: random.Random) -> None:
    """The folder is gone for a moment, as a network disk may be."""
    aside = site.store.with_name("store-aside")
    site.store.rename(aside)
    site.store.touch()
    await asyncio.sleep(2)
    site.store.unlink()
    aside.rename(site.store)


async def backend_failing(site: Site, chance: random.Random) -> None:
    """500, 503, 429 with Retry-After, and hanging up without a word."""
    bad = [500, 503, (429, {"Retry-After": "1"}), None]
    site.backend.answers.extend(chance.choice(bad) for _ in range(30))
    while site.backend.answers:
        await asyncio.sleep(0.1)


async def backend_hanging(site: Site, chance: random.Random) -> None:
    site.backend_line.flowing.clear()
    await asyncio.sleep(4)
    site.backend_line.cut()
    site.backend_line.flowing.set()


async def memory_alarm(site: Site, chance: random.Random) -> None:
    """The broker blocks all publishers."""
    await asyncio.to_thread(site.control, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(4)
    await asyncio.to_thread(site.control, "set_vm_memory_high_watermark", "0.4")


async def actors_killed_under_alarm(site: Site, chance: random.Random) -> None:
    """Publishers are blocked while acks still pass: whoever acks before the confirm loses what it published when it dies."""
    await asyncio.to_thread(site.control, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(1.5)
    for name in list(site.staff):
        site.signal(name, signal.SIGKILL)
    await asyncio.to_thread(site.control, "set_vm_memory_high_watermark", "0.4")


async def queue_deleted(site: Site, chance: random.Random) -> None:
    """A queue is deleted under its consumers, which must make it again and come back by themselves. It is empty: see IDLE."""
    await asyncio.to_thread(site.control, "delete_queue", channels.work_queue("upload"))


IDLE = frozenset({"queue-deleted"})
"""Faults that strike before the orders come: who deletes a queue deletes what lies in it."""

FAULTS: dict[str, Fault] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        nothing,
        actors_killed,
        actors_restarted,
        broker_killed,
        broker_restarted,
        connections_closed,
        broker_line_cut,
        broker_line_stalled,
        broker_line_slow,
        database_killed,
        database_line_cut,
        database_line_stalled,
        store_refusing,
        backend_failing,
        backend_hanging,
        memory_alarm,
        actors_killed_under_alarm,
        queue_deleted,
    )
}
