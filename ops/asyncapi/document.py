"""The whole document, and its form as YAML."""

import json
from importlib.metadata import version
from typing import Any

import yaml

from ops.asyncapi.channels import channels, operations
from ops.asyncapi.headers import shared
from ops.asyncapi.messages import messages
from ops.asyncapi.schemas import contracts, pool
from ops.asyncapi.staff import speakers

DESCRIPTION = """\
Atelier is a workshop of actors around a RabbitMQ bus. A client publishes an order and follows the job's events; it never needs more.

* **To order pictures** as a source system's backend does, publish to the queue `image_generation`.
* **To order any step**, publish its command to `atelier.commands` under the step's name. With `reply_to` the result or a fault comes back.
* **To follow a job**, bind a queue of your own to `atelier.events`; `job.#` are the words about whole jobs.
* Bytes never travel: a picture is a claim, an address with its sha256.
* Fields that you do not know are to be let be. A message may come twice, with the same `message_id`.

Written by `atelier asyncapi` from the code.
"""
TLS = "The same over TLS."


def document() -> dict[str, Any]:
    staff = speakers()
    models = contracts(staff)
    refs, schemas = pool(models)
    said = messages(staff, refs)
    drawn = channels(staff, said)
    return {
        "asyncapi": "3.0.0",
        "id": "urn:atelier:bus",
        "info": info(),
        "defaultContentType": "application/json",
        "servers": {"broker": server("amqp", "localhost:5672"), "brokerTls": server("amqps", "localhost:5671") | {"description": TLS}},
        "channels": drawn,
        "operations": operations(staff, drawn),
        "components": {
            "messages": said,
            "schemas": schemas | shared(),
            "correlationIds": {"job": {"location": "$message.header#/correlation_id", "description": "The job's id."}},
            "securitySchemes": security(),
        },
    }


def info() -> dict[str, Any]:
    tags = [{"name": "images"}, {"name": "vision"}, {"name": "rabbitmq"}]
    return {"title": "Atelier", "version": version("atelier"), "description": DESCRIPTION, "tags": tags}


def server(protocol: str, host: str) -> dict[str, Any]:
    return {
        "host": host,
        "protocol": protocol,
        "protocolVersion": "0.9.1",
        "description": "The RabbitMQ broker; AMQP_URL says where it is.",
        "security": [{"$ref": "#/components/securitySchemes/password"}],
    }


def security() -> dict[str, Any]:
    return {"password": {"type": "userPassword", "description": "A user of the broker (SASL PLAIN)."}}


class Writer(yaml.SafeDumper):
    """Repeats instead of pointing back: YAML's own anchors are read by few."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(drawn: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(drawn))
    return yaml.dump(plain, Dumper=Writer, sort_keys=False, allow_unicode=True, width=140)
