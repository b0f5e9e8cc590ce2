"""The RabbitMQ users of the roles on the real broker: each does its role's whole work, and is refused what is not part of it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ProbableAuthenticationError
from aiormq.exceptions import ChannelAccessRefused
from pydantic import SecretStr

from bus.amqp.messages import build_cancel
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.request_reply import ReplyTimeout, open_request_client
from bus.amqp.subscriptions import subscribe_events
from bus.amqp.topology import declare_command_queues, declare_dead_letter_queues, declare_topology, read_queue_depth
from bus.errors import PublishError
from bus.settings import BusSettings
from contracts import broker_names
from contracts.broker_names import job_binding_key
from contracts.steps import COMMANDS
from ops.broker_users import url_of_user
from ops.cli import main
from ops.commands.prepare import declare_all
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_users import PASSWORDS_FILE, create_broker_users
from ops.registry import bus_participants
from ops.settings import BrokerUserSettings
from tests.support.broker_client import BrokerClient
from tests.support.live_gateway import live_gateway
from tests.support.webhook_backend import open_webhook_backend
from tests.support.worker_processes import GENERATION_IDS, WorkerProcesses, form_c_order

STEPS = ("image_generation", "image", "watermark", "upload", "webhook", "ledger", "dead-letters", "conversations", "variants")
KEY = "k" * 32


@pytest.fixture(scope="module")
def urls(rabbitmq: RabbitNode) -> dict[str, str]:
    """The URL of each role; the administrator has declared the topology, as `atelier prepare` does."""
    asyncio.run(declare_all(BusSettings(amqp_url=SecretStr(rabbitmq.url))))
    return create_broker_users(rabbitmq, BrokerUserSettings())


def settings_of(bus_settings: BusSettings, url: str) -> BusSettings:
    return bus_settings.model_copy(update={"amqp_url": SecretStr(url)})


@asynccontextmanager
async def open_channel(url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel()


async def test_whole_order_succeeds_with_one_user_per_role(
    urls: dict[str, str], bus_settings: BusSettings, broker_client: BrokerClient, store_folder: Path
) -> None:
    """A publisher orders through the commands exchange, actors work, an operator follows the events; then a job over the gateway."""
    number = next(GENERATION_IDS)
    async with (
        open_webhook_backend() as backend,
        open_publisher(settings_of(bus_settings, urls["publisher"])) as publisher,
        open_publisher(settings_of(bus_settings, urls["operator"])) as operator,
        subscribe_events(operator, job_binding_key(f"generation-{number}")) as events,
    ):
        environment = os.environ | {
            "AMQP_URL": urls["actor"],
            "DATABASE_URL": bus_settings.database_url.get_secret_value(),  # type: ignore[union-attr]
            "STORE_URL": store_folder.as_uri(),
            "BACKEND_API_URL": backend.url,
            "RETRY_DELAYS_SECONDS": "0.1,0.2",
            "LONG_DELAYS_SECONDS": "0.5",
        }
        processes = WorkerProcesses(dict(environment), store_folder, backend, broker_client)
        async with processes.start_process(*STEPS), live_gateway(
            settings_of(bus_settings, urls["gateway"]), store_folder, api_keys=f"shop:{KEY}", host="127.0.0.1"
        ) as gateway:  # fmt: skip
            await publish_order(publisher, form_c_order(number, prompt="shaky harbour"))
            assert (await processes.wait_for_webhooks("complete"))[-1] == "complete"
            assert {(await events.get()).kind for _ in range(events.qsize())} >= {"progress", "completed"}
            async with httpx.AsyncClient(base_url=gateway, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
                order = {"kind": "itinerary", "stops": [{"step": "image", "arguments": {"prompt": "harbour", "steps": 4}}]}
                response = await http.post("/jobs?wait=30", json=order)
                assert (response.status_code, response.json()["state"]) == (200, "completed"), response.text
                assert (await http.get(f"/jobs/{response.json()['job_id']}")).status_code == 200


async def publish_order(publisher: Publisher, order: dict[str, Any]) -> None:
    async with publisher.channel() as channel:
        exchange = await channel.get_exchange(broker_names.COMMANDS_EXCHANGE, ensure=False)
        message = aio_pika.Message(json.dumps(order).encode(), message_id=uuid4().hex)
        await exchange.publish(message, broker_names.IMAGE_GENERATION_QUEUE, mandatory=True)


async def test_publisher_requests_and_reads_own_reply_queue(urls: dict[str, str], bus_settings: BusSettings) -> None:
    """Without a worker the request ends with its timeout, not with a refusal; its cancellation alone is refused."""
    async with open_publisher(settings_of(bus_settings, urls["publisher"])) as publisher, open_request_client(publisher) as requests:
        with pytest.raises((ReplyTimeout, PublishError)):
            await requests.request("overlay", {"texts": []}, seconds=0.3)
        with pytest.raises(PublishError, match=r"atelier\.control"):
            await publisher.publish(build_cancel("job"))


async def test_actor_declares_whole_topology(urls: dict[str, str], bus_settings: BusSettings) -> None:
    participants = bus_participants()
    async with open_channel(urls["actor"]) as channel:
        actors = [*participants.command_actors, *participants.event_actors]
        await declare_topology(channel, actors, participants.adapters, COMMANDS, (*bus_settings.delay_queue_seconds, 17.0))
        await declare_dead_letter_queues(channel, *participants.dead_letter_queues)
        depths = [await read_queue_depth(channel, actor.queue) for actor in actors]
    assert all(depths), "every queue exists"


Act = Callable[[AbstractChannel], Awaitable[Any]]


def publish(exchange: str, key: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(aio_pika.Message(b"{}"), key, mandatory=False)

    return act


def consume(queue: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).get(fail=False)

    return act


def declare(name: str, **options: Any) -> Act:
    return lambda channel: channel.declare_queue(name, **options)


def delete(queue: str) -> Act:
    return lambda channel: channel.queue_delete(queue)


def listen_to(exchange: str, own_queue: str) -> Act:
    """Bind a queue of one's own to an exchange."""

    async def act(channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(f"{own_queue}.{uuid4()}", exclusive=True, auto_delete=True)
        await queue.bind(exchange, "#")

    return act


COMMANDS_EXCHANGE, EVENTS, CONTROL = broker_names.COMMANDS_EXCHANGE, broker_names.EVENTS_EXCHANGE, broker_names.CONTROL_EXCHANGE
FOREIGN_NAMES: dict[str, Act] = {
    "declares a queue of another system": declare("payments", durable=True),
    "publishes to an exchange of another system": publish("amq.topic", "x"),
    "declares a reply queue's name as a durable queue": declare("amq_x_of_nobody.x", passive=False, durable=True),
}
FORBIDDEN: dict[str, dict[str, Act]] = {
    "publisher": {
        "publishes an event": publish(EVENTS, "job.completed.x"),
        "publishes a cancellation": publish(CONTROL, ""),
        "publishes to a dead-letter queue": publish("", "atelier.dead.image"),
        "publishes to the reply queue of another": publish("", "atelier.reply.x"),
        "publishes to a work queue past the exchange": publish("", "atelier.image"),
        "publishes a query of the gateway": publish(COMMANDS_EXCHANGE, "dead-letter.replay"),
        "publishes to a delay exchange": publish("atelier.retry.100ms", "x"),
        "consumes commands": consume("atelier.image"),
        "consumes orders": consume("image_generation"),
        "consumes dead letters": consume("atelier.dead.image"),
        "listens to events": listen_to(EVENTS, "atelier.reply"),
        "listens to commands": listen_to(COMMANDS_EXCHANGE, "atelier.reply"),
        "declares a work queue": declare("atelier.intruder", durable=True),
        "deletes a work queue": delete("atelier.image"),
        "declares the queue of orders": declare("image_generation", durable=True),
    },
    "actor": {
        "publishes a cancellation": publish(CONTROL, ""),
        "declares the reply queue of another": declare("atelier.reply.mine", exclusive=True),
        "consumes replies of another": consume("atelier.reply.x"),
    },
    "gateway": {
        "publishes through the default exchange": publish("", "atelier.image"),
        "publishes a result as an event": publish(EVENTS, "job.completed.x"),
        "consumes commands": consume("atelier.image"),
        "consumes dead letters": consume("atelier.dead.image"),
        "listens to commands": listen_to(COMMANDS_EXCHANGE, "atelier.listener"),
        "declares a work queue": declare("atelier.intruder", durable=True),
        "deletes a work queue": delete("atelier.image"),
    },
    "operator": {
        "publishes a command": publish(COMMANDS_EXCHANGE, "image"),
        "publishes an event": publish(EVENTS, "job.completed.x"),
        "consumes commands": consume("atelier.image"),
        "consumes dead letters": consume("atelier.dead.image"),
        "listens to commands": listen_to(COMMANDS_EXCHANGE, "atelier.listener"),
        "deletes a work queue": delete("atelier.image"),
    },
}
CASES = [(role, name, act) for role, acts in FORBIDDEN.items() for name, act in acts.items()]
CASES += [(role, name, act) for role in ("actor", "gateway", "operator") for name, act in FOREIGN_NAMES.items()]


@pytest.mark.parametrize(("role", "act"), [(role, act) for role, _, act in CASES], ids=[f"{role} {name}" for role, name, _ in CASES])
async def test_act_outside_role_is_refused(urls: dict[str, str], amqp_url: str, role: str, act: Act) -> None:
    """The administrator may do it, unless the name belongs to no queue: so the refusal is due to the permissions."""
    async with open_channel(urls[role]) as channel:
        with pytest.raises(ChannelAccessRefused):
            await act(channel)


async def test_gateway_without_right_to_declare_starts_on_prepared_broker(
    urls: dict[str, str], bus_settings: BusSettings, store_folder: Path
) -> None:
    async with live_gateway(settings_of(bus_settings, urls["gateway"]), store_folder) as gateway, httpx.AsyncClient() as http:
        assert (await http.get(f"{gateway}/health")).status_code == 200
    with pytest.raises(ChannelAccessRefused):
        async with open_channel(urls["gateway"]) as channel:
            await declare_command_queues(channel, ["image"])


async def test_publisher_of_foreign_queue_declares_and_publishes_as_older_backends_do(
    rabbitmq: RabbitNode, urls: dict[str, str], amqp_url: str
) -> None:
    allowed = create_broker_users(rabbitmq, BrokerUserSettings(publisher_foreign_queue=True))
    assert allowed == urls, "a changed permission keeps the passwords"
    try:
        async with open_channel(allowed["publisher"]) as channel:
            queue = await channel.declare_queue(broker_names.IMAGE_GENERATION_QUEUE, durable=True)
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), queue.name, mandatory=True)
        async with open_channel(amqp_url) as channel:
            await (await channel.get_queue(broker_names.IMAGE_GENERATION_QUEUE)).purge()
    finally:
        create_broker_users(rabbitmq, BrokerUserSettings())


async def test_guest_and_wrong_password_are_refused(amqp_url: str, urls: dict[str, str]) -> None:
    for url in (url_of_user(amqp_url, "guest", "guest"), url_of_user(urls["actor"], "atelier-actor", "guessed")):
        with pytest.raises(ProbableAuthenticationError):
            await aio_pika.connect(url)


async def test_users_are_applied_to_private_node_by_command(
    rabbitmq: RabbitNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`atelier topology --users --apply` finds the node in its folder, keeps the passwords in a private file and prints none."""
    monkeypatch.setenv("ATELIER_LOCAL_FOLDER", str(rabbitmq.folder.parent))
    monkeypatch.setattr("ops.commands.broker_users.local_rabbitmq_folder", lambda _: rabbitmq.folder)
    for name in ("AMQP_URL", "RABBITMQ_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert main(["topology", "--users", "--apply"]) == 0
    printed = capsys.readouterr().out
    file = rabbitmq.folder / PASSWORDS_FILE
    passwords = json.loads(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(passwords) == ["atelier-actor", "atelier-gateway", "atelier-operator", "atelier-publisher"]
    assert not [password for password in passwords.values() if password in printed]
    for user, password in passwords.items():
        async with open_channel(url_of_user(rabbitmq.url, user, password)):
            pass
