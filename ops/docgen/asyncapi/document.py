"""The whole document, and its form as YAML."""

import json
from importlib.metadata import version
from typing import Any

import yaml

from ops.docgen.asyncapi.channel_objects import build_channels, build_operations
from ops.docgen.asyncapi.header_schemas import shared_header_schemas
from ops.docgen.asyncapi.message_objects import build_messages
from ops.docgen.contract_schemas import message_models, schema_pool
from ops.registry import bus_participants

DESCRIPTION = """\
Atelier is a workshop of actors around a RabbitMQ bus. A client publishes an order and follows the job's events; it never needs more.

* **To order pictures** as a source system's backend does, publish to the queue `image_generation`.
* **To order any step**, publish its command to `atelier.commands` under the step's name. With `reply_to` the result or a fault comes back.
* **To follow a job**, bind a queue of your own to `atelier.events`; `job.#` are the words about whole jobs.
* Bytes never travel: a picture is a claim, an address with its sha256.
* Fields that you do not know are to be let be. A message may come twice, with the same `message_id`.

Written by `atelier asyncapi` from the code.
"""
TLS_DESCRIPTION = "The same over TLS."


def build_document() -> dict[str, Any]:
    staff = bus_participants()
    models = message_models(staff)
    refs, schemas = schema_pool(models)
    said = build_messages(staff, refs)
    drawn = build_channels(staff, said)
    return {
        "asyncapi": "3.0.0",
        "id": "urn:atelier:bus",
        "info": info_object(),
        "defaultContentType": "application/json",
        "servers": {
            "broker": server_object("amqp", "localhost:5672"),
            "brokerTls": server_object("amqps", "localhost:5671") | {"description": TLS_DESCRIPTION},
        },
        "channels": drawn,
        "operations": build_operations(staff, drawn),
        "components": {
            "messages": said,
            "schemas": schemas | shared_header_schemas(),
            "correlationIds": {"job": {"location": "$message.header#/correlation_id", "description": "The job's id."}},
            "securitySchemes": security_schemes(),
        },
    }


def info_object() -> dict[str, Any]:
    tags = [{"name": "images"}, {"name": "vision"}, {"name": "rabbitmq"}]
    return {"title": "Atelier", "version": version("atelier"), "description": DESCRIPTION, "tags": tags}


def server_object(protocol: str, host: str) -> dict[str, Any]:
    return {
        "host": host,
        "protocol": protocol,
        "protocolVersion": "0.9.1",
        "description": "The RabbitMQ broker; AMQP_URL says where it is.",
        "security": [{"$ref": "#/components/securitySchemes/password"}],
    }


def security_schemes() -> dict[str, Any]:
    return {"password": {"type": "userPassword", "description": "A user of the broker (SASL PLAIN)."}}


class NoAliasDumper(yaml.SafeDumper):
    """Repeats instead of pointing back: YAML's own anchors are read by few."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(document))
    return yaml.dump(plain, Dumper=NoAliasDumper, sort_keys=False, allow_unicode=True, width=140)
