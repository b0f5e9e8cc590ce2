"""`atelier prepare`: exchanges, queues, policies and the bucket, before the first actor runs. May be run again at any time."""

import asyncio
import sys
from argparse import Namespace
from urllib.parse import quote, unquote, urlsplit

import httpx

from bus.errors import PermanentError, TemporaryError
from bus.outbox import open_outbox
from bus.s3 import make_bucket
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from bus.topology import declare_topology
from ops.asyncapi.staff import speakers
from ops.errors import SetupError
from ops.topology import POLICIES


def prepare(arguments: Namespace) -> int:
    try:
        asyncio.run(all_parts(BusSettings(), StoreSettings(), arguments.management))
    except (PermanentError, TemporaryError, OSError) as error:
        raise SetupError(f"The parts could not be prepared: {error}") from error
    return 0


async def all_parts(bus: BusSettings, store: StoreSettings, management: str | None) -> None:
    staff = speakers()
    async with open_outbox(bus) as outbox, outbox.channel() as channel:
        await declare_topology(channel, [*staff.workers, *staff.hearers], staff.adapters, [], bus.rungs)
    say("exchanges and queues: declared")
    if management:
        set_policies(management, bus.amqp_url.get_secret_value())
        say(f"policies: {', '.join(POLICIES)}")
    if store.store_url.startswith("s3://"):
        bucket = store.store_url.removeprefix("s3://").partition("/")[0]
        say(f"bucket {bucket}: {'made' if await make_bucket(store, bucket) else 'there already'}")


def set_policies(management: str, amqp_url: str) -> None:
    """Through the management plugin's HTTP API, as the user of the AMQP address; the user must be an administrator."""
    parts = urlsplit(amqp_url)
    vhost = quote(unquote(parts.path.removeprefix("/")) or "/", safe="")
    user = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    with httpx.Client(base_url=management, auth=user, timeout=20) as http:
        for name, (pattern, definition) in POLICIES.items():
            policy = {"pattern": pattern, "definition": definition, "apply-to": "queues"}
            try:
                answer = http.put(f"/api/policies/{vhost}/{name}", json=policy)
            except httpx.HTTPError as error:
                raise SetupError(f"{management} does not answer ({error}): is the management plugin enabled?") from error
            if answer.is_error:
                raise SetupError(f"{management} refused the policy {name}: {answer.status_code}. The user must be an administrator.")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
