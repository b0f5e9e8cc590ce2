"""The faults. Each one happens while orders are processed, and is over when its function returns.

Those that must meet something under way wait until it is, and return how much they met: 0 means that the fault has missed.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable

import aio_pika

from contracts import broker_names
from tests.chaos.attack import publish_hostile_messages
from tests.chaos.environment import GRACE_SECONDS, ChaosEnvironment
from tests.chaos.journal import DeliveryCounts
from tests.support.tcp_proxy import TcpProxy

Fault = Callable[[ChaosEnvironment, random.Random], Awaitable[int | None]]

MEET_SECONDS = 15.0
"""So long a fault waits for what it is to meet."""
WAITING_COMMANDS = 5
WAITING_EVENTS = 20
BLOCKED_SECONDS = 0.3
"""From the first message that a blocked broker does not take until its publisher knows."""


async def nothing(environment: ChaosEnvironment, rng: random.Random) -> None:
    """No fault: the baseline."""


async def come_true(condition: Callable[[], bool], seconds: float = MEET_SECONDS) -> bool:
    """Whether it comes true in time."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        await asyncio.sleep(0.005)
    return condition()


async def kill_at_work(environment: ChaosEnvironment, name: str, seconds: float) -> int:
    """SIGKILL when the worker has deliveries in progress, or else after some seconds. Returns how many."""
    process, journal = environment.processes[name], environment.journals[name]
    await come_true(lambda: bool(DeliveryCounts.read(journal).in_progress), seconds)
    environment.send_signal(name, signal.SIGKILL)
    await process.wait()
    return DeliveryCounts.read(journal).in_progress


async def stop_images(environment: ChaosEnvironment) -> int:
    """Stop the image workers until commands wait in their queue behind those that are delivered to them. Returns how many wait."""
    for image in environment.workers("image"):
        environment.send_signal(image, signal.SIGSTOP)
    ready, limit = 0, time.monotonic() + MEET_SECONDS
    async with await aio_pika.connect(environment.node.url) as connection:
        channel = await connection.channel()
        while ready < WAITING_COMMANDS and time.monotonic() < limit:
            await asyncio.sleep(0.05)
            queue = await channel.declare_queue(broker_names.work_queue("image"), passive=True)
            ready = queue.declaration_result.message_count or 0
    return ready


def resume_images(environment: ChaosEnvironment) -> None:
    for image in environment.workers("image"):
        environment.send_signal(image, signal.SIGCONT)


async def actors_killed(environment: ChaosEnvironment, rng: random.Random) -> int:
    """Any four, each while it has deliveries in progress if it has some soon; another that has some if these had none."""
    met = 0
    for _ in range(4):
        met += await kill_at_work(environment, rng.choice(list(environment.processes)), seconds=1)
        await asyncio.sleep(rng.uniform(0.3, 1.2))
    return met or await kill_at_work(environment, rng.choice(environment.workers("image")), MEET_SECONDS)


async def actors_restarted(environment: ChaosEnvironment, rng: random.Random) -> None:
    """SIGTERM to one after another, as a rolling deployment does."""
    for name in list(environment.processes):
        environment.send_signal(name, signal.SIGTERM)
        await asyncio.sleep(GRACE_SECONDS + 0.5)


async def broker_killed(environment: ChaosEnvironment, rng: random.Random) -> int:
    """While commands wait in a queue."""
    waiting = await stop_images(environment)
    await asyncio.to_thread(environment.node.kill)
    resume_images(environment)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(environment.node.start)
    return waiting


async def broker_restarted(environment: ChaosEnvironment, rng: random.Random) -> None:
    await asyncio.to_thread(environment.node.restart)


async def connections_closed(environment: ChaosEnvironment, rng: random.Random) -> int:
    """While deliveries are not acked: the broker delivers them again, and their workers go on with them all the same."""
    waiting = await stop_images(environment)
    await asyncio.to_thread(environment.node.rabbitmqctl, "close_all_connections", "chaos")
    resume_images(environment)
    return waiting


async def database_killed(environment: ChaosEnvironment, rng: random.Random) -> None:
    await asyncio.to_thread(environment.postgres.kill)
    await asyncio.sleep(4)
    await asyncio.to_thread(environment.postgres.start)


async def connection_reset(proxy: TcpProxy, rng: random.Random) -> None:
    for _ in range(3):
        proxy.abort_connections()
        await asyncio.sleep(rng.uniform(0.2, 1.0))


async def connection_stalled(proxy: TcpProxy, rng: random.Random) -> None:
    """Longer than three heartbeats and than every time-out but the database's: both ends must notice it themselves."""
    proxy.flow_enabled.clear()
    await asyncio.sleep(10)
    proxy.flow_enabled.set()


async def connection_half_open(proxy: TcpProxy, rng: random.Random) -> None:
    proxy.half_open()
    await asyncio.sleep(1)


async def connection_slow(proxy: TcpProxy, rng: random.Random) -> None:
    proxy.delay_seconds = 0.2
    await asyncio.sleep(5)
    proxy.delay_seconds = 0


CONNECTION_FAULTS = (connection_reset, connection_stalled, connection_half_open, connection_slow)


def connection_fault(service: str, fault_function: Callable[[TcpProxy, random.Random], Awaitable[None]]) -> Fault:
    async def fault(environment: ChaosEnvironment, rng: random.Random) -> None:
        await fault_function(getattr(environment, f"{service}_proxy"), rng)

    fault.__name__ = f"{service}_{fault_function.__name__}"
    return fault


async def store_refusing(environment: ChaosEnvironment, rng: random.Random) -> None:
    """The folder is unavailable for a moment, as a network disk may be."""
    renamed_folder = environment.store.with_name("store-aside")
    environment.store.rename(renamed_folder)
    environment.store.touch()
    await asyncio.sleep(2)
    environment.store.unlink()
    renamed_folder.rename(environment.store)


STORE_FULL_BODY = (
    b"<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive threshold.</Message></Error>"
)


async def store_full(environment: ChaosEnvironment, rng: random.Random) -> None:
    """Every request is answered with 507, as by a store without free space."""
    headers = ["Content-Type: application/xml", f"Content-Length: {len(STORE_FULL_BODY)}", "Connection: close"]
    head = "\r\n".join(["HTTP/1.1 507 Insufficient Storage", *headers, "", ""])
    environment.store_proxy.fixed_response = head.encode() + STORE_FULL_BODY
    environment.store_proxy.abort_connections()
    await asyncio.sleep(4)
    environment.store_proxy.fixed_response = None


async def store_hanging_up(environment: ChaosEnvironment, rng: random.Random) -> None:
    environment.store_proxy.fixed_response = b""
    environment.store_proxy.abort_connections()
    await asyncio.sleep(4)
    environment.store_proxy.fixed_response = None


async def model_process_killed(environment: ChaosEnvironment, rng: random.Random) -> None:
    """Kill only the model processes, four times while they generate."""
    for _ in range(4):
        for image in environment.workers("image"):
            environment.kill_children(image)
        await asyncio.sleep(rng.uniform(5, 9))


async def engine_actors_killed(environment: ChaosEnvironment, rng: random.Random) -> None:
    """Kill the actor processes: the orphaned model process must exit by itself."""
    for _ in range(2):
        environment.send_signal(rng.choice(environment.workers("image")), signal.SIGKILL)
        await asyncio.sleep(rng.uniform(3, 6))


async def consumer_timeout(environment: ChaosEnvironment, rng: random.Random) -> int:
    """The broker requeues messages that are not acked within a second, while some orders take longer, of those that wait as well."""
    waiting = await stop_images(environment)
    await asyncio.to_thread(environment.set_consumer_timeout, 1000)
    resume_images(environment)
    await asyncio.sleep(8)
    await asyncio.to_thread(environment.set_consumer_timeout, 10_800_000)
    return waiting


async def deadline_passed(environment: ChaosEnvironment, rng: random.Random) -> None:
    """The image workers are stopped until the deadline of most queued orders has passed."""
    for image in environment.workers("image"):
        environment.send_signal(image, signal.SIGSTOP)
    await asyncio.sleep(6)
    resume_images(environment)


async def backend_failing(environment: ChaosEnvironment, rng: random.Random) -> None:
    """500, 503, 429 with Retry-After, and connections closed before or within a response."""
    failures = [500, 503, (429, {"Retry-After": "1"}), None, (500, {"Content-Length": "999"}), (200, {"Content-Length": "999"})]
    environment.backend.responses.extend(rng.choice(failures) for _ in range(30))
    while environment.backend.responses:
        await asyncio.sleep(0.1)


async def backend_hanging(environment: ChaosEnvironment, rng: random.Random) -> None:
    environment.backend_proxy.flow_enabled.clear()
    await asyncio.sleep(4)
    environment.backend_proxy.abort_connections()
    environment.backend_proxy.flow_enabled.set()


async def memory_alarm(environment: ChaosEnvironment, rng: random.Random) -> None:
    """The broker blocks all publishers."""
    await asyncio.to_thread(environment.node.rabbitmqctl, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(4)
    await asyncio.to_thread(environment.node.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")


async def actors_killed_under_alarm(environment: ChaosEnvironment, rng: random.Random) -> int:
    """Publishers are blocked while acks still pass, and results are stored: killed are the workers whose results are not yet published.

    A worker that acks before the confirm loses messages then; one that does not know its results repeats them. Returns how many results.
    """
    await stop_images(environment)
    await asyncio.to_thread(environment.node.rabbitmqctl, "set_vm_memory_high_watermark", "0.0001")
    decided = environment.deliveries("image").decided
    resume_images(environment)
    await come_true(lambda: environment.deliveries("image").decided > decided)
    await asyncio.sleep(BLOCKED_SECONDS)
    decided = environment.deliveries("image").decided
    await come_true(lambda: environment.deliveries("image").decided > decided)
    await asyncio.sleep(BLOCKED_SECONDS)
    results = environment.deliveries("image").decided - decided
    for name in list(environment.processes):
        environment.send_signal(name, signal.SIGKILL)
    await asyncio.to_thread(environment.node.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")
    return results


async def actors_killed_without_database(environment: ChaosEnvironment, rng: random.Random) -> int:
    """The database does not respond, and the workers are killed that have events to store meanwhile. Returns how many events."""
    begun = environment.deliveries("webhook").begun
    environment.database_proxy.flow_enabled.clear()
    await come_true(lambda: environment.deliveries("webhook").begun >= begun + WAITING_EVENTS)
    events = environment.deliveries("webhook").begun - begun
    for name in environment.workers("webhook"):
        environment.send_signal(name, signal.SIGKILL)
    environment.database_proxy.abort_connections()  # what they have sent never arrives
    environment.database_proxy.flow_enabled.set()
    return events


async def queue_deleted(environment: ChaosEnvironment, rng: random.Random) -> None:
    """The consumers must declare the queue again and resume by themselves. It is empty: see FAULTS_BEFORE_LOAD."""
    await asyncio.to_thread(environment.node.rabbitmqctl, "delete_queue", broker_names.work_queue("upload"))


async def hostile_messages(environment: ChaosEnvironment, rng: random.Random) -> None:
    """A publisher sends messages that no client library would send, to every queue of the pipeline and to the control exchange."""
    environment.hostile_bodies |= await asyncio.to_thread(publish_hostile_messages, environment.node.url, rng.randrange(1 << 31))


FAULTS_BEFORE_LOAD = frozenset({"queue-deleted"})
"""Faults that happen before the orders are published: deleting a queue deletes its messages."""

CONNECTION_FAULTS_BY_SERVICE = tuple(
    connection_fault(service, fault) for service in ("broker", "database", "backend") for fault in CONNECTION_FAULTS
)
STORE_CONNECTION_FAULTS = tuple(connection_fault("store", fault) for fault in CONNECTION_FAULTS)

ORDER_DEADLINES = {"deadline-passed": 4.0}
"""Faults under which orders have a deadline, in seconds."""

FAULTS_BY_KIND: dict[str, tuple[Fault, ...]] = {
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
        actors_killed_without_database,
        queue_deleted,
        hostile_messages,
        *CONNECTION_FAULTS_BY_SERVICE,
    ),
    "bucket": (store_full, store_hanging_up, *STORE_CONNECTION_FAULTS),
    "engine": (model_process_killed, engine_actors_killed),
}
"""The faults of each kind of environment."""


def fault_name(fault: Fault) -> str:
    return getattr(fault, "__name__", "").replace("_", "-")


FAULTS_BY_NAME = {fault_name(fault): fault for faults in FAULTS_BY_KIND.values() for fault in faults}
KIND_OF = {fault_name(fault): kind for kind, faults in FAULTS_BY_KIND.items() for fault in faults}
