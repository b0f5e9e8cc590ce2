"""The faults. Each is one thing that goes wrong while orders are under way, and is over when its function returns."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from contracts import channels
from tests.chaos.proxy import Proxy
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
    await asyncio.to_thread(site.node.control, "close_all_connections", "chaos")


async def database_killed(site: Site, chance: random.Random) -> None:
    await asyncio.to_thread(site.postgres.kill)
    await asyncio.sleep(4)
    await asyncio.to_thread(site.postgres.start)


async def line_cut(line: Proxy, chance: random.Random) -> None:
    for _ in range(3):
        line.cut()
        await asyncio.sleep(chance.uniform(0.2, 1.0))


async def line_stalled(line: Proxy, chance: random.Random) -> None:
    """Longer than three heartbeats, and than every time limit but the database's: both ends must notice by themselves."""
    line.flowing.clear()
    await asyncio.sleep(10)
    line.flowing.set()


async def line_half_open(line: Proxy, chance: random.Random) -> None:
    line.half_open()
    await asyncio.sleep(1)


async def line_slow(line: Proxy, chance: random.Random) -> None:
    line.delay_seconds = 0.2
    await asyncio.sleep(5)
    line.delay_seconds = 0


TROUBLES = (line_cut, line_stalled, line_half_open, line_slow)


def on_the_line(part: str, trouble: Callable[[Proxy, random.Random], Awaitable[None]]) -> Fault:
    async def fault(site: Site, chance: random.Random) -> None:
        await trouble(getattr(site, f"{part}_line"), chance)

    fault.__name__ = f"{part}_{trouble.__name__}"
    return fault


async def store_refusing(site: Site, chance: random.Random) -> None:
    """The folder is gone for a moment, as a network disk may be."""
    aside = site.store.with_name("store-aside")
    site.store.rename(aside)
    site.store.touch()
    await asyncio.sleep(2)
    site.store.unlink()
    aside.rename(site.store)


FULL = b"<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive threshold.</Message></Error>"


async def store_full(site: Site, chance: random.Random) -> None:
    """Every request is answered as a store does that has no room left."""
    head = f"HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\nContent-Length: {len(FULL)}\r\nConnection: close\r\n\r\n"
    site.store_line.answer = head.encode() + FULL
    site.store_line.cut()
    await asyncio.sleep(4)
    site.store_line.answer = None


async def store_hanging_up(site: Site, chance: random.Random) -> None:
    site.store_line.answer = b""
    site.store_line.cut()
    await asyncio.sleep(4)
    site.store_line.answer = None


async def model_process_killed(site: Site, chance: random.Random) -> None:
    """The process that holds the model, and nothing else, four times while it draws."""
    for _ in range(4):
        for image in ("image-1", "image-2"):
            site.kill_children(image)
        await asyncio.sleep(chance.uniform(5, 9))


async def engine_actors_killed(site: Site, chance: random.Random) -> None:
    """The actor beside the model: the model process must notice that it is alone, and leave."""
    for _ in range(2):
        site.signal(chance.choice(["image-1", "image-2"]), signal.SIGKILL)
        await asyncio.sleep(chance.uniform(3, 6))


async def consumer_timeout(site: Site, chance: random.Random) -> None:
    """The broker takes back what is not acked within a second, while some orders need longer."""
    await asyncio.to_thread(site.set_consumer_timeout, 1000)
    await asyncio.sleep(8)
    await asyncio.to_thread(site.set_consumer_timeout, 10_800_000)


async def deadline_passed(site: Site, chance: random.Random) -> None:
    """The painters stand still until the time of most orders in the queue is over."""
    for image in ("image-1", "image-2"):
        site.signal(image, signal.SIGSTOP)
    await asyncio.sleep(6)
    for image in ("image-1", "image-2"):
        site.signal(image, signal.SIGCONT)


async def backend_failing(site: Site, chance: random.Random) -> None:
    """500, 503, 429 with Retry-After, hanging up without a word, and in the middle of an answer."""
    bad = [500, 503, (429, {"Retry-After": "1"}), None, (500, {"Content-Length": "999"}), (200, {"Content-Length": "999"})]
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
    await asyncio.to_thread(site.node.control, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(4)
    await asyncio.to_thread(site.node.control, "set_vm_memory_high_watermark", "0.4")


async def actors_killed_under_alarm(site: Site, chance: random.Random) -> None:
    """Publishers are blocked while acks still pass: whoever acks before the confirm loses what it published when it dies."""
    await asyncio.to_thread(site.node.control, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(1.5)
    for name in list(site.staff):
        site.signal(name, signal.SIGKILL)
    await asyncio.to_thread(site.node.control, "set_vm_memory_high_watermark", "0.4")


async def queue_deleted(site: Site, chance: random.Random) -> None:
    """A queue is deleted under its consumers, which must make it again and come back by themselves. It is empty: see IDLE."""
    await asyncio.to_thread(site.node.control, "delete_queue", channels.work_queue("upload"))


IDLE = frozenset({"queue-deleted"})
"""Faults that strike before the orders come: who deletes a queue deletes what lies in it."""

LINES = tuple(on_the_line(part, trouble) for part in ("broker", "database", "backend") for trouble in TROUBLES)
STORE_LINES = tuple(on_the_line("store", trouble) for trouble in TROUBLES)

DEADLINES = {"deadline-passed": 4.0}
"""Faults under which orders have a deadline, and its seconds."""

PLACES: dict[str, tuple[Fault, ...]] = {
    "folder": (
        nothing,
        actors_killed,
        actors_restarted,
        broker_killed,
        broker_restarted,
        connections_closed,
        consumer_timeout,
        database_killed,
        store_refusing,
        backend_failing,
        backend_hanging,
        deadline_passed,
        memory_alarm,
        actors_killed_under_alarm,
        queue_deleted,
        *LINES,
    ),
    "bucket": (store_full, store_hanging_up, *STORE_LINES),
    "engine": (model_process_killed, engine_actors_killed),
}
"""Which faults befall which kind of site."""


def said(fault: Fault) -> str:
    return getattr(fault, "__name__", "").replace("_", "-")


FAULTS = {said(fault): fault for faults in PLACES.values() for fault in faults}
KIND_OF = {said(fault): kind for kind, faults in PLACES.items() for fault in faults}
