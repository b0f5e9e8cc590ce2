"""`atelier prepare`: creates exchanges, queues, policies and the bucket before the first actor runs. It is idempotent."""

import asyncio
import sys
from argparse import Namespace
from urllib.parse import quote, unquote, urlsplit

import httpx

from bus.amqp.publisher import open_publisher
from bus.amqp.topology import declare_topology
from bus.errors import PermanentError, TemporaryError
from bus.settings import BusSettings
from bus.storage.s3_client import create_bucket
from bus.storage.settings import StoreSettings
from ops.broker_users import broker_definitions, import_over_http, vhost_of
from ops.commands.broker_users import configured_roles
from ops.commands.topology import POLICIES
from ops.errors import SetupError
from ops.registry import bus_participants
from ops.settings import BrokerUserSettings


def prepare(arguments: Namespace) -> int:
    try:
        asyncio.run(prepare_all(BusSettings(), StoreSettings(), arguments.management))
    except (PermanentError, TemporaryError, OSError) as error:
        raise SetupError(f"The services could not be prepared: {error}") from error
    return 0


async def prepare_all(bus_settings: BusSettings, store_settings: StoreSettings, management_url: str | None) -> None:
    await declare_all(bus_settings)
    print_line("exchanges and queues: declared")
    if management_url:
        set_policies(management_url, bus_settings.amqp_url.get_secret_value())
        print_line(f"policies: {', '.join(POLICIES)}")
        print_line(f"users: {', '.join(create_users(management_url, bus_settings.amqp_url.get_secret_value())) or 'no password is set'}")
    if store_settings.store_url.startswith("s3://"):
        bucket = store_settings.store_url.removeprefix("s3://").partition("/")[0]
        print_line(f"bucket {bucket}: {'created' if await create_bucket(store_settings, bucket) else 'exists already'}")


async def declare_all(bus_settings: BusSettings) -> None:
    """Every exchange and queue of every step."""
    participants = bus_participants()
    actors = [*participants.command_actors, *participants.event_actors]
    async with open_publisher(bus_settings) as publisher, publisher.channel() as channel:
        await declare_topology(channel, actors, participants.adapters, [], bus_settings.delay_queue_seconds)


def set_policies(management_url: str, amqp_url: str) -> None:
    """Through the HTTP API of the management plugin, as the user of the AMQP URL, who must be an administrator. Raises SetupError."""
    parts = urlsplit(amqp_url)
    vhost = quote(unquote(parts.path.removeprefix("/")) or "/", safe="")
    user = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    with httpx.Client(base_url=management_url, auth=user, timeout=20) as http:
        for name, (pattern, definition) in POLICIES.items():
            policy = {"pattern": pattern, "definition": definition, "apply-to": "queues"}
            try:
                response = http.put(f"/api/policies/{vhost}/{name}", json=policy)
            except httpx.HTTPError as error:
                raise SetupError(f"{management_url} does not answer ({error}): is the management plugin enabled?") from error
            if response.is_error:
                raise SetupError(f"{management_url} refused the policy {name}: {response.status_code}. The user must be an administrator.")


def create_users(management_url: str, amqp_url: str) -> list[str]:
    """Create or update the broker's users whose passwords are set (RABBITMQ_ACTOR_PASSWORD …), and return their names."""
    settings = BrokerUserSettings()
    roles = [role for role in configured_roles(settings).values() if role.name in settings.passwords]
    passwords = {role.user: settings.passwords[role.name] for role in roles}
    if roles:
        import_over_http(management_url, amqp_url, broker_definitions(roles, passwords, vhost_of(amqp_url)))
    return list(passwords)


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
