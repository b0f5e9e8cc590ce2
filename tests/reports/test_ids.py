"""Reports on ids: dots and wildcards in a job id and the documented bindings, lengths in bytes, control characters; one rule for all.

The documented bindings are read from docs/consumer.md, so that the page and the broker cannot disagree.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from pydantic import TypeAdapter, ValidationError

from actors.ledger import ACTORS as LEDGER
from bus.actor import Actor, Context
from bus.amqp.header_values import read_id
from bus.amqp.messages import SECOND_KEYS_HEADER, build_event
from bus.amqp.publisher import open_publisher
from bus.amqp.subscriptions import open_job_subscription, subscribe_events
from bus.settings import BusSettings
from contracts import broker_names
from contracts.event import Event
from contracts.identifiers import ID_RULE, Identifier, is_identifier
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, Echo, Echoed, StartWorker, echo_actor
from tests.support.gateway_app import open_gateway, wait_until_job_ended

DOCUMENTED = re.findall(r"^\| `([^`]+)` \| ", (Path(__file__).parents[2] / "docs" / "consumer.md").read_text(), re.MULTILINE)
"""Binding keys of the table."""
IDS = [
    "generation-500",
    "order.2026.17",
    "a..b",
    ".",
    "*",
    "#",
    "order.#.1",
    "order.*",
    "100%.5",
    "order 17",
    "주문.17",
    "Order.A",
    "." * 255,
    "x" * 255,
    f"{'x' * 198}.y",
    "urn:uuid:0/1?x=#2",
]


async def echo(command: Echo, context: Context) -> Echoed:
    return Echoed(text=command.text)


@pytest.fixture
def actor() -> Actor:
    return echo_actor(echo)


def event_of(job_id: str, kind: str = "completed") -> Event:
    return Event.model_validate({"kind": kind, "step": "job", "job_id": job_id, "at": "2026-01-01T00:00:00Z", "message_id": "m-1"})


def test_page_names_the_bindings_that_are_tried() -> None:
    assert {"#", "*.*.generation-500", "job.completed.*", "image.failed.*"} <= set(DOCUMENTED)


async def collect(client: BrokerClient, key: str) -> list[AbstractIncomingMessage]:
    found: list[AbstractIncomingMessage] = []
    queue = await client.channel.declare_queue(exclusive=True)
    await queue.bind(broker_names.EVENTS_EXCHANGE, key)

    async def take(message: AbstractIncomingMessage) -> None:
        found.append(message)

    await queue.consume(take, no_ack=True)
    return found


async def test_every_documented_binding_receives_the_end_of_a_job_with_any_id(
    start_worker: StartWorker, broker_client: BrokerClient, actor: Actor
) -> None:
    """cloudamqp/lavinmq #1299, celery/kombu #2568, rabbitmq/rabbitmq-server #9833: `*` is one word, so `job.completed.*` never received a
    job id with dots. Each queue gets each event once, also where several keys of a message match.
    """
    async with start_worker(actor):
        bindings = {
            key: await collect(broker_client, key) for key in ("job.completed.*", "job.completed.#", f"{actor.step}.completed.*", "#")
        }
        by_job = {job_id: await collect(broker_client, broker_names.job_binding_key(job_id)) for job_id in IDS}
        for job_id in IDS:
            await broker_client.publish(actor.step, {"text": "x"}, correlation_id=job_id, reply_to=broker_client.reply_queue)
            assert (await broker_client.next_reply())[0] == f"{actor.step}.done.v1"
        async with asyncio.timeout(10):
            while len(bindings["job.completed.*"]) < len(IDS):
                await asyncio.sleep(0.02)
    for key, found in bindings.items():
        kinds = [(json.loads(message.body)["step"], message.correlation_id) for message in found]
        assert len(kinds) == len(set(kinds)), f"{key} got an event twice"
        steps = {"job"} if key.startswith("job.") else {actor.step} if key != "#" else {"job", actor.step}
        assert set(kinds) == {(step, job_id) for step in steps for job_id in IDS}, key
    for job_id, found in by_job.items():
        same_key = {other for other in IDS if broker_names.job_binding_key(other) == broker_names.job_binding_key(job_id)}
        assert {message.correlation_id for message in found} == same_key, job_id


async def test_job_id_as_it_is_still_binds_where_it_has_dots(start_worker: StartWorker, broker_client: BrokerClient, actor: Actor) -> None:
    """What earlier releases documented and delivered: `*.*.<job id>` with the id as it is, and the routing key with it."""
    async with start_worker(actor):
        found = await collect(broker_client, "*.*.order.2026.17")
        escaped = await collect(broker_client, "*.*.order%2E2026%2E17")
        await broker_client.publish(actor.step, {"text": "x"}, correlation_id="order.2026.17", reply_to=broker_client.reply_queue)
        await broker_client.next_reply()
        async with asyncio.timeout(10):
            while len(found) < 2 or len(escaped) < 2:
                await asyncio.sleep(0.02)
    assert [message.routing_key for message in found] == [f"{actor.step}.completed.order.2026.17", "job.completed.order.2026.17"]
    assert [message.message_id for message in found] == [message.message_id for message in escaped]


async def test_gateways_subscription_receives_events_of_any_id_and_no_other(bus_settings: BusSettings) -> None:
    async with open_publisher(bus_settings) as publisher, open_job_subscription(publisher) as subscription:
        for job_id in IDS:
            async with subscription.subscribe(job_id) as events:
                await publisher.publish(build_event(event_of("another"), {}), build_event(event_of(job_id), {}))
                assert (await asyncio.wait_for(events.get(), 5)).job_id == job_id
        async with subscribe_events(publisher, broker_names.job_binding_key("#")) as events:
            await publisher.publish(build_event(event_of("another"), {}), build_event(event_of("#"), {}))
            assert (await asyncio.wait_for(events.get(), 5)).job_id == "#"


@pytest.mark.parametrize("job_id", [*IDS, "안" * 85, "%" * 255, "é" * 127, "*" * 255])
def test_routing_keys_fit_into_a_short_string(job_id: str) -> None:
    """gmr/pamqp #69, bloomberg/rmqcpp #54, mosquito/aiormq #141, zatosource/zato #704: 255 bytes, or the connection ends."""
    for kind in ("accepted", "completed"):
        for key in (broker_names.event_routing_key, broker_names.escaped_event_key):
            assert len(key("image_generation", kind, job_id).encode()) <= 255
    assert len(broker_names.job_binding_key(job_id).encode()) <= 255
    assert "." not in broker_names.escaped_event_key("s", "k", job_id).split(".", 2)[2]


def test_id_of_one_plain_word_has_no_second_key() -> None:
    assert SECOND_KEYS_HEADER not in build_event(event_of("generation-500"), {}).headers
    assert build_event(event_of("a.b"), {"k": "v"}).headers == {"k": "v", SECOND_KEYS_HEADER: ["job.completed.a%2Eb"]}


REFUSED = [
    ("correlation_id", "a\0b"),
    ("correlation_id", "a\r\nX: 1"),
    ("correlation_id", "\x7f"),
    ("correlation_id", "\x85"),
    ("message_id", "a\0b"),
    ("message_id", "\x1b[31m"),
    ("reply_to", "amq.gen-\n"),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
async def test_id_with_control_characters_is_refused_with_the_rule(
    start_worker: StartWorker, broker_client: BrokerClient, actor: Actor, name: str, value: str
) -> None:
    """brianc/node-postgres #2080, stellar/go-stellar-sdk #1469, apache/devlake #5243: a NUL in an id reached the database. Before, such an
    id was replaced by a digest without a word, and the sender never found its job.
    """
    async with start_worker(actor):
        await broker_client.publish(actor.step, {"text": "x"}, **{name: value})
        dead = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
        assert dead.headers[Header.FAULT_CODE] == "id-refused"
        assert name in str(dead.headers[Header.FAULT_MESSAGE])
        assert ID_RULE in str(dead.headers[Header.FAULT_MESSAGE])
        assert dead.body == b'{"text": "x"}'
        await broker_client.publish(actor.step, {"text": "next"}, reply_to=broker_client.reply_queue)
        assert (await broker_client.next_reply())[1] == {"text": "next"}


@pytest.mark.parametrize(
    "tenant", ["t" * 256, "안" * 86, "a\0", "a\r\nb", 7, True, bytearray(b"\xff\xfe"), bytearray(b"\xed\xa0\x80"), ["shop"]]
)
async def test_tenant_outside_the_rule_is_refused_and_not_shortened(
    start_worker: StartWorker, broker_client: BrokerClient, actor: Actor, tenant: Any
) -> None:
    """Two long names had the same beginning and were one tenant; a number was no tenant, and the job the installation's own.

    The event of the failure carries no such name either: every consumer that keeps the rule, such as the ledger, would refuse it.
    """
    async with start_worker(actor):
        events = await broker_client.subscribe_events(f"{actor.step}.failed.#")
        await broker_client.publish(actor.step, {"text": "x"}, headers={Header.TENANT.value: tenant})
        dead = await broker_client.take_message(broker_names.dead_letter_queue(actor.step))
        assert dead.headers[Header.FAULT_CODE] == "id-refused"
        assert Header.TENANT.value in str(dead.headers[Header.FAULT_MESSAGE])
        assert "tenant" not in await asyncio.wait_for(events.get(), 10)


@pytest.mark.parametrize(
    "properties",
    [
        {"correlation_id": ""},
        {"correlation_id": "x" * 255},
        {"correlation_id": "안" * 85},
        {"message_id": "", "correlation_id": "order 17/2"},
        {"headers": {Header.TENANT.value: "Müller & Söhne"}},
        {"headers": {Header.TENANT.value: "t" * 255}},
        {"headers": {Header.TENANT.value: bytearray(b"shop")}},
        {"headers": {Header.TENANT.value: ""}},
        {"headers": {Header.TENANT.value: None}},
    ],
)
async def test_id_within_the_rule_is_kept(
    start_worker: StartWorker, broker_client: BrokerClient, actor: Actor, properties: dict[str, Any]
) -> None:
    """Polyconseil/aioamqp #28: a reply has the id of its request, byte for byte; without one, that of the message."""
    async with start_worker(actor):
        message_id = await broker_client.publish(actor.step, {"text": "x"}, reply_to=broker_client.reply_queue, **properties)
        reply = await asyncio.wait_for(broker_client.replies.get(), 10)
    assert reply.type == f"{actor.step}.done.v1"
    if expected := properties.get("correlation_id") or message_id:
        assert reply.correlation_id == expected


def test_rule_is_one_for_models_properties_and_addresses() -> None:
    model = TypeAdapter(Identifier)
    for value in [*IDS, "é" * 127, "🎨", " "]:
        assert is_identifier(value)
        assert model.validate_python(value) == read_id(value) == value
    for value in ["", "a\0", "a\n", "\x9f", "\ud800", "x" * 256, "안" * 86, "🎨" * 64]:
        assert not is_identifier(value)
        assert read_id(value) != value
        with pytest.raises(ValidationError, match="control characters"):
            model.validate_python(value)
    assert not any(map(is_identifier, [None, 7, b"x", ["x"]]))


async def test_event_of_a_dotted_job_is_routed_once_to_a_queue_bound_twice(bus_settings: BusSettings, amqp_url: str) -> None:
    """The broker itself, without a worker: one queue bound with both keys."""
    async with open_publisher(bus_settings) as publisher, await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        for key in ("job.completed.*", "job.completed.a.b", "#"):
            await queue.bind(broker_names.EVENTS_EXCHANGE, key)
        await publisher.publish(build_event(event_of("a.b"), {}))
        first = await queue.get(timeout=5)
        assert (first.routing_key, await queue.get(fail=False)) == ("job.completed.a.b", None)


READABLE = [job_id for job_id in IDS if "/" not in job_id and job_id != "."]
"""A path of HTTP has no segment `.`, and servers read `%2F` as a slash."""


async def test_job_with_any_id_is_read_over_http_and_its_links_lead_to_it(
    start_worker: StartWorker, broker_client: BrokerClient, actor: Actor, bus_settings: BusSettings, store_folder: Path
) -> None:
    """The gateway knew fewer characters than the broker: such a job ran, and was not to be found."""
    async with start_worker(actor, *LEDGER), open_gateway(bus_settings, store_folder) as http:
        for job_id in READABLE:
            await broker_client.publish(actor.step, {"text": "x"}, correlation_id=job_id)
        for job_id in READABLE:
            job = await wait_until_job_ended(http, quote(job_id, safe=""))
            assert job["job_id"] == job_id
            assert (await http.get(job["links"]["self"])).json()["job_id"] == job_id
            assert "job.completed" in (await http.get(job["links"]["events"])).text


@pytest.mark.parametrize("path", ["a%00b", "a%0Ab", "%C2%85", "x" * 256, quote("안" * 86), "%1B"])
async def test_id_outside_the_rule_is_refused_over_http_with_the_rule(path: str, bus_settings: BusSettings, store_folder: Path) -> None:
    async with open_gateway(bus_settings, store_folder) as http:
        for method, suffix in [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/files/a.png")]:
            response = await http.request(method, f"/jobs/{path}{suffix}")
            assert response.status_code == 422, response.text
            assert "255" in response.text
