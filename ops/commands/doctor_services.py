"""What the doctor asks of the parts: the broker and its queues, the database, the store, whoever takes the webhooks."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from actors.settings import WebhookSettings
from bus.observability.probes import BROKER_UNAVAILABLE, QueueDepth, probe_broker, probe_database, probe_port, probe_queues, probe_store
from bus.storage.settings import StoreSettings
from contracts import broker_names
from ops.commands.doctor_host import Check, make_check
from ops.errors import SetupError
from ops.local import postgres, rabbitmq_install
from ops.local.rabbitmq import RabbitNode, accepts_amqp
from ops.registry import MODULES
from ops.settings import LocalSettings


def find_broker_url(settings: LocalSettings) -> str | None:
    """The broker that is given, or the private one if it runs now."""
    if settings.given_amqp_url:
        return settings.given_amqp_url
    folder = settings.local_folder.resolve() / "rabbitmq"
    if not (folder / "identity.json").exists():
        return None
    node = RabbitNode(folder, folder)
    return node.url if accepts_amqp(node.identity.amqp) else None


async def check_broker(settings: LocalSettings) -> Check:
    if url := settings.given_amqp_url:
        cure = "start that broker, look at user, password and vhost, or unset AMQP_URL for a private node"
        return make_check("rabbitmq", describe_failure(url, 5672, await probe_broker(url)), f"{host_and_port(url, 5672)} answers", cure)
    if find_broker_url(settings):
        return Check("rabbitmq", True, "the private node runs")
    found = rabbitmq_install.find_server_script(settings)
    cure = "make demo installs it" if settings.may_install and rabbitmq_install.install_command() else rabbitmq_install.RABBITMQ_MISSING
    return make_check("rabbitmq", None if found else "no rabbitmq-server on this machine", f"{found}, not running", cure)


async def check_database(settings: LocalSettings) -> Check:
    if url := settings.given_database_url:
        cure = "start that server, look at user, password and database, or unset DATABASE_URL for an embedded one"
        return make_check("postgres", describe_failure(url, 5432, await probe_database(url)), f"{host_and_port(url, 5432)} answers", cure)
    try:
        return Check("postgres", True, f"embedded, {postgres.bin_folder()}")
    except SetupError as error:
        return Check("postgres", False, "the embedded server is not installed", str(error))


async def check_store(settings: LocalSettings) -> Check:
    url = settings.given_store_url
    if url and url.startswith("s3://"):
        if find_spec("aioboto3") is None:
            return Check("store", False, "aioboto3 is not installed", "pip install -e '.[s3]'")
        cure = "look at AWS_S3_ENDPOINT_URL, the keys, and that the bucket exists"
        return make_check("store", await probe_store(StoreSettings(store_url=url)), url, cure)
    folder = Path(unquote(urlsplit(url or settings.local_folder.resolve().as_uri()).path))
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
    trouble = None if writable else f"{standing} cannot be written"
    return make_check("store", trouble, str(folder), f"make {standing} a folder that this user may write to, or set STORE_URL")


async def check_webhook_target(_: LocalSettings) -> Check:
    url = WebhookSettings().backend_api_url
    if url is None:
        return Check("webhooks", True, "no BACKEND_API_URL: only orders that name their own backend are told")
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    trouble = describe_failure(url, port, await probe_port(place.hostname or "", port))
    return make_check(
        "webhooks",
        trouble,
        f"{host_and_port(url, port)} answers",
        "start the backend, or correct BACKEND_API_URL; its webhooks wait and are tried again",
    )


async def check_queues(settings: LocalSettings, steps: Sequence[str]) -> Check:
    """A named step must be served. Of the others, a queue in which messages wait must be."""
    url = find_broker_url(settings)
    if url is None:
        return Check("queues", True, "no broker runs, so nobody waits")
    names = {queue_name(step): step for step in steps or MODULES}
    try:
        found = await probe_queues(url, names)
    except BROKER_UNAVAILABLE:
        return Check("queues", False, "cannot be asked for: the broker is away", "first mend rabbitmq, above")
    unread = [describe_queue(name, read) for name, read in found.items() if lacks_consumer(read, required=bool(steps))]
    served = [names[name] for name, read in found.items() if read and read.consumers]
    todo = " ".join(names[name] for name, read in found.items() if lacks_consumer(read, required=bool(steps)))
    return make_check("queues", "; ".join(unread) or None, f"served: {', '.join(served) or 'none'}", f"atelier run {todo}")


def queue_name(step: str) -> str:
    return step if step == broker_names.IMAGE_GENERATION_QUEUE else broker_names.work_queue(step)


def lacks_consumer(stats: QueueDepth | None, *, required: bool) -> bool:
    return required if stats is None else not stats.consumers and (required or stats.ready > 0)


def describe_queue(name: str, stats: QueueDepth | None) -> str:
    return f"{name} has no consumer, {stats.ready} messages wait" if stats else f"{name} is not there: its actor has never run"


def host_and_port(url: str, default_port: int) -> str:
    place = urlsplit(url)
    return f"{place.hostname or '127.0.0.1'}:{place.port or default_port}"


def describe_failure(url: str, default_port: int, error: str | None) -> str | None:
    """Without the password, should the trouble quote it."""
    password = urlsplit(url).password
    words = error.replace(password, "***") if error and password else error
    return f"{host_and_port(url, default_port)} does not answer: {words}" if words else None
