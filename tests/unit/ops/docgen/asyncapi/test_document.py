"""The AsyncAPI document describes every message, queue and exchange of the bus, with valid examples."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from aio_pika import ExchangeType
from jsonschema import Draft202012Validator

from bus.amqp import topology
from contracts.control import Control
from contracts.event import Event
from contracts.wire import Header
from ops.cli import main
from ops.docgen.asyncapi.document import build_document, to_yaml
from ops.docgen.asyncapi.header_schemas import documented_headers
from ops.docgen.contract_schemas import message_models
from ops.registry import MODULES, bus_participants, load_actors

DOCUMENT: dict[str, Any] = json.loads(json.dumps(build_document()))
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]


def examples() -> Iterator[tuple[str, str, Any]]:
    for name, message in MESSAGES.items():
        for example in message["examples"]:
            yield name, "payload", example["payload"]
            if "headers" in example:
                yield name, "headers", example["headers"]


@pytest.mark.parametrize(("name", "part", "example"), list(examples()), ids=lambda value: value if isinstance(value, str) else "")
def test_example_matches_its_schema(name: str, part: str, example: Any) -> None:
    schema = MESSAGES[name][part] | {"components": DOCUMENT["components"]}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(example)


def test_every_example_is_parsed_by_its_model() -> None:
    models = {name: model for name, model in message_models(bus_participants()).items() if name in MESSAGES}
    events = [name for name in MESSAGES if name.startswith("event.")]
    assert len(models) > 10
    assert len(events) > 5
    for name, model in models.items():
        assert model.model_validate(MESSAGES[name]["examples"][0]["payload"])
    assert all(Event.model_validate(MESSAGES[name]["examples"][0]["payload"]) for name in events)


def test_every_actor_has_command_result_and_fault() -> None:
    actors = [actor for actor in load_actors(list(MODULES)).actors if actor.exchange == "atelier.commands"]
    assert len(actors) > 10
    for actor in actors:
        operation = DOCUMENT["operations"][f"take.{actor.step}"]
        assert operation["channel"]["$ref"] == f"#/channels/work.{actor.step}"
        replies = {ref["$ref"].rpartition("/")[2] for ref in operation["reply"]["messages"]}
        assert replies == {f"{actor.step}.done.v1", "fault.v1"}
        assert operation["reply"]["address"]["location"] == "$message.header#/reply_to"


class FakeChannel:
    """Records declarations."""

    def __init__(self) -> None:
        self.queues: dict[str, Any] = {}
        self.exchanges: dict[str, ExchangeType] = {}

    async def declare_queue(self, name: str, *, durable: bool, arguments: Any = None) -> "FakeChannel":
        self.queues[name] = arguments or {}
        return self

    async def declare_exchange(self, name: str, kind: ExchangeType, *, durable: bool) -> "FakeChannel":
        self.exchanges[name] = kind
        return self

    async def bind(self, *_: Any) -> None: ...


def test_every_declared_queue_and_exchange_is_in_document() -> None:
    """Except the delay queues, to which only the bus publishes."""
    components, broker = load_actors(list(MODULES)), FakeChannel()
    adapters = [adapter for adapter in components.adapters if hasattr(adapter, "queue")]
    asyncio.run(topology.declare_topology(broker, components.actors, adapters, [], []))  # type: ignore[arg-type]
    bindings = [channel["bindings"]["amqp"] for channel in DOCUMENT["channels"].values() if "bindings" in channel]
    documented = {binding["queue"]["name"] for binding in bindings if "queue" in binding}
    query_queues = {f"atelier.dead.{actor.step}" for actor in components.actors if actor.is_query}
    assert set(broker.queues) - query_queues <= documented
    exchanges = {binding["exchange"]["name"]: binding["exchange"]["type"] for binding in bindings if "exchange" in binding}
    assert exchanges == {name: kind.value for name, kind in broker.exchanges.items()}


def test_dead_letter_has_failure_headers_and_event_has_none() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert {str(header) for header in Header} <= set(schemas["Headers.dead"]["properties"])
    assert {header for header, _ in documented_headers()} == set(Header)
    assert "atelier-fault-code" not in schemas["Headers.event"]["properties"]


def test_yaml_has_no_password_and_no_anchor() -> None:
    text = to_yaml(build_document())
    assert yaml.safe_load(text) == DOCUMENT
    assert "&id0" not in text
    assert "guest" not in text


def test_control_message_is_in_document() -> None:
    assert Control.model_validate(MESSAGES["control.v1"]["examples"][0]["payload"]).cancel


def test_command_prints_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asyncapi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["asyncapi"] == "3.0.0"
