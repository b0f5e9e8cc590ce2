"""`atelier topology`: prints the exchanges and queues that actors declare by themselves, and policies that an operator may set.

Policies are optional. They are printed as `rabbitmqctl` commands, because only an administrator may set them.
"""

import json
import sys
from argparse import Namespace
from typing import Any

from pydantic import SecretStr

from bus.settings import BusSettings
from contracts import broker_names
from contracts.steps import COMMANDS
from ops.registry import MODULES

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "atelier-work": (r"^atelier\.(?!dead\.|retry\.)", {"delivery-limit": 20}),
    "atelier-dead": (r"^atelier\.dead\.", {"max-length": 1_000_000, "overflow": "reject-publish"}),
}
"""Name, pattern and definition. Atelier dead-letters a crash loop before the broker's delivery limit is reached."""


def topology(arguments: Namespace) -> int:
    if arguments.users:
        from ops.commands.broker_users import users

        return users(arguments)
    described = describe_topology()
    sys.stdout.write(json.dumps(described, indent=2) + "\n" if arguments.json else format_topology(described))
    return 0


def describe_topology() -> dict[str, Any]:
    steps = sorted({*COMMANDS, *MODULES} - {broker_names.IMAGE_GENERATION_QUEUE, "job_variants"})  # job_variants listens to PostgreSQL
    delay_queues = [broker_names.retry_exchange(delay) for delay in BusSettings(amqp_url=SecretStr("amqp://")).delay_queue_seconds]
    return {
        "exchanges": {
            broker_names.COMMANDS_EXCHANGE: "topic",
            broker_names.EVENTS_EXCHANGE: "topic",
            broker_names.CONTROL_EXCHANGE: "fanout",
            **dict.fromkeys(delay_queues, "fanout"),
        },
        "queues": [
            *(broker_names.work_queue(step) for step in steps),
            *(broker_names.dead_letter_queue(step) for step in (*steps, broker_names.IMAGE_GENERATION_QUEUE)),
            *delay_queues,
            broker_names.IMAGE_GENERATION_QUEUE,
        ],
        "policies": [{"name": name, "pattern": pattern, "definition": definition} for name, (pattern, definition) in POLICIES.items()],
    }


def format_topology(topology: dict[str, Any]) -> str:
    lines = ["exchanges", *(f"  {name} ({kind})" for name, kind in topology["exchanges"].items())]
    lines += ["queues", *(f"  {name}" for name in topology["queues"]), "policies that may be set"]
    for policy in topology["policies"]:
        definition = json.dumps(policy["definition"])
        lines.append(f"  rabbitmqctl set_policy {policy['name']} '{policy['pattern']}' '{definition}' --apply-to queues")
    return "\n".join(lines) + "\n"
