"""The faults. Each one happens while orders are processed, and is over when its function returns."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from contracts import broker_names
from tests.chaos.attack import publish_hostile_messages
from tests.chaos.environment import GRACE_SECONDS, ChaosEnvironment
from tests.support.tcp_proxy import TcpProxy

Fault = Callable[[ChaosEnvironment, random.Random], Awaitable[None]]


async def nothing(environment: ChaosEnvironment, rng: random.Random) -> None:
    """No fault: the baseline."""


async def actors_killed(environment: ChaosEnvironment, rng: random.Random) -> None:
    for _ in range(4):
        environment.send_signal(rng.choice(list(environment.processes)), signal.SIGKILL)
        await asyncio.sleep(rng.uniform(0.3, 1.2))


async def actors_restarted(environment: ChaosEnvironment, rng: random.Random) -> None:
    """SIGTERM to one after another, as a rolling deployment does."""
    for name in list(environment.processes):
        environment.send_signal(name, signal.SIGTERM)
        await asyncio.sleep(GRACE_SECONDS + 0.5)


async def broker_killed(environment: ChaosEnvironment, rng: random.Random) -> None:
    await asyncio.to_thread(environment.node.kill)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(environment.node.start)


async def broker_restarted(environment: ChaosEnvironment, rng: random.Random) -> None:
    await asyncio.to_thread(environment.node.restart)


async def connections_closed(environment: ChaosEnvironment, rng: random.Random) -> None:
    await asyncio.to_thread(environment.node.rabbitmqctl, "close_all_connections", "chaos")


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
        for image in ("image-1", "image-2"):
            environment.kill_children(image)
        await asyncio.sleep(rng.uniform(5, 9))


async def engine_actors_killed(environment: ChaosEnvironment, rng: random.Random) -> None:
    """Kill the actor processes: the orphaned model process must exit by itself."""
    for _ in range(2):
        environment.send_signal(rng.choice(["image-1", "image-2"]), signal.SIGKILL)
        await asyncio.sleep(rng.uniform(3, 6))


async def consumer_timeout(environment: ChaosEnvironment, rng: random.Random) -> None:
    """The broker requeues messages that are not acked within a second, while some orders take longer."""
    await asyncio.to_thread(environment.set_consumer_timeout, 1000)
    await asyncio.sleep(8)
    await asyncio.to_thread(environment.set_consumer_timeout, 10_800_000)


async def deadline_passed(environment: ChaosEnvironment, rng: random.Random) -> None:
    """The image workers are stopped until the deadline of most queued orders has passed."""
    for image in ("image-1", "image-2"):
        environment.send_signal(image, signal.SIGSTOP)
    await asyncio.sleep(6)
    for image in ("image-1", "image-2"):
        environment.send_signal(image, signal.SIGCONT)


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


async def actors_killed_under_alarm(environment: ChaosEnvironment, rng: random.Random) -> None:
    """Publishers are blocked while acks still pass: a worker that acks before the confirm would lose its messages when it is killed."""
    await asyncio.to_thread(environment.node.rabbitmqctl, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(1.5)
    for name in list(environment.processes):
        environment.send_signal(name, signal.SIGKILL)
    await asyncio.to_thread(environment.node.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")


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
