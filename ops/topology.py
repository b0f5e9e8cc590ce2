"""`atelier topology`: prints the exchanges and queues that actors declare by themselves, and policies that an operator may set.

Policies are optional: nothing breaks without them. They are printed as `rabbitmqctl` commands, because only an administrator may set them.
"""

import json
import sys
from argparse import Namespace
from typing import Any

from pydantic import SecretStr

from bus.settings import BusSettings
from contracts import channels
from contracts.steps import COMMANDS
from ops.workshop import MODULES

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "atelier-work": (r"^atelier\.(?!dead\.|retry\.)", {"delivery-limit": 20}),
    "atelier-dead": (r"^atelier\.dead\.", {"max-length": 1_000_000, "overflow": "reject-publish"}),
}
"""Name, pattern and definition. Our own code buries a crash loop earlier; the limit is the net below it."""


def topology(arguments: Namespace) -> int:
    drawn = draw()
    sys.stdout.write(json.dumps(drawn, indent=2) + "\n" if arguments.json else tell(drawn))
    return 0


def draw() -> dict[str, Any]:
    steps = sorted({*COMMANDS, *MODULES} - {channels.IMAGE_GENERATION, "job_variants"})  # the latter listens to Postgres
    rungs = [channels.retry_exchange(delay) for delay in BusSettings(amqp_url=SecretStr("amqp://")).rungs]
    return {
        "exchanges": {channels.COMMANDS: "topic", channels.EVENTS: "topic", channels.CONTROL: "fanout", **dict.fromkeys(rungs, "fanout")},
        "queues": [
            *(channels.work_queue(step) for step in steps),
            *(channels.dead_queue(step) for step in (*steps, channels.IMAGE_GENERATION)),
            *rungs,
            channels.IMAGE_GENERATION,
        ],
        "policies": [{"name": name, "pattern": pattern, "definition": definition} for name, (pattern, definition) in POLICIES.items()],
    }


def tell(drawn: dict[str, Any]) -> str:
    lines = ["exchanges", *(f"  {name} ({kind})" for name, kind in drawn["exchanges"].items())]
    lines += ["queues", *(f"  {name}" for name in drawn["queues"]), "policies that may be set"]
    for policy in drawn["policies"]:
        definition = json.dumps(policy["definition"])
        lines.append(f"  rabbitmqctl set_policy {policy['name']} '{policy['pattern']}' '{definition}' --apply-to queues")
    return "\n".join(lines) + "\n"
