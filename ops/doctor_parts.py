"""What the doctor asks of the parts: the broker and its queues, the database, the store, whoever takes the webhooks."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from actors.settings import WebhookSettings
from bus.outside import AWAY, Read, broker_trouble, database_trouble, port_trouble, queues_of, store_trouble
from bus.store_settings import StoreSettings
from contracts import channels
from ops.errors import SetupError
from ops.findings import Check, judged
from ops.local import install, postgres
from ops.local.rabbitmq import RabbitNode, answers
from ops.settings import LocalSettings
from ops.workshop import MODULES


def broker_of(settings: LocalSettings) -> str | None:
    """The broker that is given, or the private one if it runs now."""
    if settings.given_amqp_url:
        return settings.given_amqp_url
    folder = settings.local_folder.resolve() / "rabbitmq"
    if not (folder / "identity.json").exists():
        return None
    node = RabbitNode(folder, folder)
    return node.url if answers(node.identity.amqp) else None


async def broker(settings: LocalSettings) -> Check:
    if url := settings.given_amqp_url:
        cure = "start that broker, look at user, password and vhost, or unset AMQP_URL for a private node"
        return judged("rabbitmq", told(url, 5672, await broker_trouble(url)), f"{where(url, 5672)} answers", cure)
    if broker_of(settings):
        return Check("rabbitmq", True, "the private node runs")
    found = install.search(settings)
    cure = "make demo installs it" if settings.may_install and install.way_to_install() else install.WAYS_OUT
    return judged("rabbitmq", None if found else "no rabbitmq-server on this machine", f"{found}, not running", cure)


async def database(settings: LocalSettings) -> Check:
    if url := settings.given_database_url:
        cure = "start that server, look at user, password and database, or unset DATABASE_URL for an embedded one"
        return judged("postgres", told(url, 5432, await database_trouble(url)), f"{where(url, 5432)} answers", cure)
    try:
        return Check("postgres", True, f"embedded, {postgres.programs()}")
    except SetupError as error:
        return Check("postgres", False, "the embedded server is not installed", str(error))


async def store(settings: LocalSettings) -> Check:
    url = settings.given_store_url
    if url and url.startswith("s3://"):
        if find_spec("aioboto3") is None:
            return Check("store", False, "aioboto3 is not installed", "pip install -e '.[s3]'")
        cure = "look at AWS_S3_ENDPOINT_URL, the keys, and that the bucket exists"
        return judged("store", await store_trouble(StoreSettings(store_url=url)), url, cure)
    folder = Path(unquote(urlsplit(url or settings.local_folder.resolve().as_uri()).path))
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
    trouble = None if writable else f"{standing} cannot be written"
    return judged("store", trouble, str(folder), f"make {standing} a folder that this user may write to, or set STORE_URL")


async def webhooks(_: LocalSettings) -> Check:
    url = WebhookSettings().backend_api_url
    if url is None:
        return Check("webhooks", True, "no BACKEND_API_URL: only orders that name their own backend are told")
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    trouble = told(url, port, await port_trouble(place.hostname or "", port))
    return judged(
        "webhooks",
        trouble,
        f"{where(url, port)} answers",
        "start the backend, or correct BACKEND_API_URL; its webhooks wait and are tried again",
    )


async def queues(settings: LocalSettings, steps: Sequence[str]) -> Check:
    """A named step must be served. Of the others, a queue in which messages wait must be."""
    url = broker_of(settings)
    if url is None:
        return Check("queues", True, "no broker runs, so nobody waits")
    names = {queue_of(step): step for step in steps or MODULES}
    try:
        found = await queues_of(url, names)
    except AWAY:
        return Check("queues", False, "cannot be asked for: the broker is away", "first mend rabbitmq, above")
    unread = [said(name, read) for name, read in found.items() if unserved(read, named=bool(steps))]
    served = [names[name] for name, read in found.items() if read and read.consumers]
    todo = " ".join(names[name] for name, read in found.items() if unserved(read, named=bool(steps)))
    return judged("queues", "; ".join(unread) or None, f"served: {', '.join(served) or 'none'}", f"atelier run {todo}")


def queue_of(step: str) -> str:
    return step if step == channels.IMAGE_GENERATION else channels.work_queue(step)


def unserved(read: Read | None, *, named: bool) -> bool:
    return named if read is None else not read.consumers and (named or read.messages > 0)


def said(name: str, read: Read | None) -> str:
    return f"{name} has no consumer, {read.messages} messages wait" if read else f"{name} is not there: its actor has never run"


def where(url: str, usual_port: int) -> str:
    place = urlsplit(url)
    return f"{place.hostname or '127.0.0.1'}:{place.port or usual_port}"


def told(url: str, usual_port: int, trouble: str | None) -> str | None:
    """Without the password, should the trouble quote it."""
    password = urlsplit(url).password
    words = trouble.replace(password, "***") if trouble and password else trouble
    return f"{where(url, usual_port)} does not answer: {words}" if words else None
