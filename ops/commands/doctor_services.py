"""The doctor's checks of the services: the broker and its queues, the database, the store, the receiver of webhooks."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr, ValidationError

from actors.settings import UploadSettings, WebhookSettings
from actors.upload import destination_settings
from bus.amqp.topology import QueueDepth
from bus.observability.probes import BROKER_UNAVAILABLE, probe_broker, probe_database, probe_port, probe_queues, probe_store
from bus.persistence.database_url import hosts_of
from bus.settings import BusSettings
from bus.storage.public_address import EXPIRY_CURE, describe_expiry
from bus.storage.settings import StoreSettings
from ops.commands.doctor_host import Check, make_check
from ops.errors import SetupError, describe_settings_error
from ops.local import postgres, rabbitmq_install
from ops.local.rabbitmq import RabbitNode, accepts_amqp
from ops.registry import MODULES, queue_of
from ops.settings import LocalSettings


def find_broker_url(settings: LocalSettings) -> str | None:
    """The URL of the configured broker, or of the private one if it runs now."""
    if settings.given_amqp_url:
        return settings.given_amqp_url
    folder = settings.local_folder.resolve() / "rabbitmq"
    if not (folder / "identity.json").exists():
        return None
    node = RabbitNode(folder, folder)
    return node.url if accepts_amqp(node.identity.amqp) else None


async def check_broker(settings: LocalSettings) -> Check:
    if url := settings.given_amqp_url:
        cure = "start that broker, check user, password and vhost, or unset AMQP_URL for a private node"
        return make_check("rabbitmq", describe_failure(url, 5672, await probe_broker(url)), f"{host_and_port(url, 5672)} answers", cure)
    if find_broker_url(settings):
        return Check("rabbitmq", True, "the private node runs")
    script = rabbitmq_install.find_server_script(settings)
    cure = "make demo installs it" if settings.may_install and rabbitmq_install.install_command() else rabbitmq_install.RABBITMQ_MISSING
    return make_check("rabbitmq", None if script else "no rabbitmq-server on this machine", f"{script}, not running", cure)


async def check_database(settings: LocalSettings) -> Check:
    if url := settings.given_database_url:
        cure = "start that server, check user, password and database, or unset DATABASE_URL for an embedded one"
        try:
            given = BusSettings(amqp_url=SecretStr("amqp://none"), database_url=SecretStr(url))
        except ValidationError as error:
            return Check("postgres", False, describe_settings_error(error) or "", cure)
        return make_check(
            "postgres", await probe_database(given.postgres_url or url, given.direct_postgres_url), f"{hosts_of(url)} answers", cure
        )
    try:
        return Check("postgres", True, f"embedded, {postgres.bin_folder()}")
    except SetupError as error:
        return Check("postgres", False, "the embedded server is not installed", str(error))


async def check_store(settings: LocalSettings) -> Check:
    url = settings.given_store_url
    if url and url.startswith("s3://"):
        if find_spec("aioboto3") is None:
            return Check("store", False, "aioboto3 is not installed", "pip install -e '.[s3]'")
        cure = "check AWS_S3_ENDPOINT_URL, the keys, the rights and the bucket"
        return make_check("store", await probe_store(StoreSettings(store_url=url)), url, cure)
    folder = Path(unquote(urlsplit(url or settings.local_folder.resolve().as_uri()).path))
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    problem = None if is_writable else f"{existing} cannot be written"
    return make_check("store", problem, str(folder), f"make {existing} a folder that this user may write to, or set STORE_URL")


async def check_webhook_target(_: LocalSettings) -> Check:
    url = WebhookSettings().backend_api_url
    if url is None:
        return Check("webhooks", True, "no BACKEND_API_URL: only orders that name their own backend get webhooks")
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    problem = describe_failure(url, port, await probe_port(parts.hostname or "", port))
    cure = "start the backend, or correct BACKEND_API_URL; its webhooks are retried"
    return make_check("webhooks", problem, f"{host_and_port(url, port)} answers", cure)


async def check_links(settings: LocalSettings) -> Check:
    """A backend keeps the links to uploaded pictures. Those that expire are a warning: they work until then."""
    upload = UploadSettings()
    url = upload.url or settings.given_store_url
    if url is None:
        return Check("links", True, "to files of the local store")
    reason = describe_expiry(destination_settings(upload, url) if upload.url else StoreSettings(store_url=url))
    return Check("links", True, reason, EXPIRY_CURE, warning=True) if reason else Check("links", True, "to uploaded pictures stay valid")


async def check_queues(settings: LocalSettings, steps: Sequence[str]) -> Check:
    """A step that is named must have a consumer; without named steps, every queue in which messages wait."""
    url = find_broker_url(settings)
    if url is None:
        return Check("queues", True, "no broker runs, so no message waits")
    step_by_queue = {queue_of(step): step for step in steps or MODULES}
    try:
        depths = await probe_queues(url, step_by_queue)
    except BROKER_UNAVAILABLE:
        return Check("queues", False, "unknown: the broker is unavailable", "first fix rabbitmq, above")
    unserved = {name: depth for name, depth in depths.items() if lacks_consumer(depth, required=bool(steps))}
    problem = "; ".join(describe_queue(name, depth) for name, depth in unserved.items())
    served = [step_by_queue[name] for name, depth in depths.items() if depth and depth.consumers]
    cure = f"atelier run {' '.join(step_by_queue[name] for name in unserved)}"
    return make_check("queues", problem or None, f"served: {', '.join(served) or 'none'}", cure)


def lacks_consumer(depth: QueueDepth | None, *, required: bool) -> bool:
    return required if depth is None else not depth.consumers and (required or depth.ready > 0)


def describe_queue(name: str, depth: QueueDepth | None) -> str:
    return f"{name} has no consumer, {depth.ready} messages wait" if depth else f"{name} does not exist: its actor has never run"


def host_and_port(url: str, default_port: int) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or '127.0.0.1'}:{parts.port or default_port}"


def describe_failure(url: str, default_port: int, error: str | None) -> str | None:
    """The error of a probe for the report."""
    return f"{host_and_port(url, default_port)} does not answer: {error}" if error else None
