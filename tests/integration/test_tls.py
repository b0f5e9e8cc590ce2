"""TLS to broker, database, store and backend, with a certificate authority that only TLS_CA_FILE names."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import httpx
import pytest

from actors.settings import WebhookSettings
from actors.webhooks.webhook_client import Target, open_webhook_client
from actors.webhooks.webhook_request import WebhookRequest
from bus.actor import Context
from bus.amqp.publisher import open_publisher
from bus.errors import TemporaryError
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.s3 import S3ClaimStore
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from ops.local import daemon
from ops.local.rabbitmq import RabbitNode
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings
from tests.support.broker_client import Echo, Echoed, echo_actor
from tests.support.certificates import Certificates, make_certificates
from tests.support.tcp_proxy import open_proxy
from tests.support.webhook_backend import open_webhook_backend

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class TlsNode(RabbitNode):
    """A broker that also listens for TLS."""

    def __init__(self, folder: Path, server: Path, certificates: Certificates) -> None:
        super().__init__(folder, server)
        self._certificates = certificates
        (self.tls_port,) = daemon.free_ports(1)

    @property
    def tls_url(self) -> str:
        return f"amqps://atelier:{self.identity.password}@127.0.0.1:{self.tls_port}/"

    def _write_configuration(self) -> None:
        super()._write_configuration()
        files = self._certificates
        with (self.folder / "rabbitmq.conf").open("a") as configuration:
            configuration.write(
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\nssl_options.cacertfile = {files.authority}\n"
                f"ssl_options.certfile = {files.server}\nssl_options.keyfile = {files.key}\n"
            )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[TlsNode]:
    node = TlsNode(tmp_path_factory.mktemp("tls-rabbitmq"), find_or_install_rabbitmq(LocalSettings()), certificates)
    try:
        node.start()
        yield node
    finally:
        node.stop()


async def test_worker_uses_tls_to_broker(node: TlsNode, certificates: Certificates, bus_settings: BusSettings, store_folder: Path) -> None:
    """For both of its connections, the consuming and the publishing one."""

    async def echo(command: Echo, context: Context) -> Echoed:
        return Echoed(text=command.text)

    actor = echo_actor(echo)
    settings = with_changes(bus_settings, amqp_url=node.tls_url, tls_ca_file=certificates.authority)
    store = StoreSettings(store_url=store_folder.as_uri())
    async with Worker((actor,), (), settings, store).run(), await aio_pika.connect(node.url) as connection:
        channel = await connection.channel()
        reply_queue = await channel.declare_queue(exclusive=True)
        command = aio_pika.Message(b'{"text": "hello"}', reply_to=reply_queue.name, message_id="m-1")
        await channel.default_exchange.publish(command, actor.queue)
        async with asyncio.timeout(10), reply_queue.iterator() as replies:
            assert (await anext(replies)).body == b'{"text":"hello"}'


async def test_broker_with_untrusted_certificate_is_rejected(node: TlsNode, bus_settings: BusSettings) -> None:
    with pytest.raises((aio_pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        await asyncio.wait_for(
            open_and_close(open_publisher(with_changes(bus_settings, amqp_url=node.tls_url, publish_timeout_seconds=3.0))), 10
        )


async def open_and_close(manager: Any) -> None:
    async with manager:
        pass


def with_changes(settings: BusSettings, **changes: Any) -> BusSettings:
    return BusSettings.model_validate(settings.model_dump() | changes)


@asynccontextmanager
async def tls_postgres(port: int, certificates: Certificates) -> AsyncIterator[int]:
    """A TLS proxy for the embedded server: PostgreSQL's SSLRequest, then the forwarded bytes. Yields its port."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(1 << 16):
            sink.write(chunk)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == bytes.fromhex("0000000804d2162f"), "SSLRequest"
        writer.write(b"S")
        try:
            await writer.start_tls(certificates.ssl_context)
        except (ssl.SSLError, OSError):
            return
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps.update(asyncio.create_task(pump(*ends)) for ends in ((reader, server_writer), (server_reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.wait(pumps, timeout=3)


async def test_database_connection_uses_tls(bus_settings: BusSettings, database_url: str, certificates: Certificates) -> None:
    """With `sslmode=verify-full` in its URL; a certificate of another authority is rejected."""
    parts = urlsplit(database_url)
    async with tls_postgres(parts.port or 0, certificates) as port:
        url = database_url.replace(parts.netloc.rpartition("@")[2], f"127.0.0.1:{port}")
        url += f"{'&' if '?' in url else '?'}sslmode=verify-full"
        async with open_pool(with_changes(bus_settings, database_url=url, tls_ca_file=certificates.authority)) as pool:
            assert pool
            assert await pool.fetchval("select 1") == 1
        with pytest.raises(ssl.SSLError):
            await asyncpg.connect(url, ssl=ssl.create_default_context())


async def test_webhook_call_uses_tls(certificates: Certificates) -> None:
    request = WebhookRequest("POST", "/api/webhooks/generation/7/complete", b"{}")
    async with open_webhook_backend() as backend, open_proxy(urlsplit(backend.url).port or 0, certificates.ssl_context) as proxy:
        target = Target(f"https://localhost:{proxy.port}", trusted=True)
        async with open_webhook_client(WebhookSettings(tls_ca_file=certificates.authority)) as client:
            assert await client.send(target, request, "m-1") == 200
        async with open_webhook_client(WebhookSettings()) as client:
            with pytest.raises(TemporaryError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.send(target, request, "m-2")
        assert len(backend.requests) == 1


async def test_store_connection_uses_tls(certificates: Certificates) -> None:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        async with httpx.AsyncClient() as client:
            (await client.put(f"http://{host}:{port}/gallery")).raise_for_status()
        async with open_proxy(port, certificates.ssl_context) as proxy:
            settings: dict[str, Any] = {
                "store_url": "s3://gallery",
                "AWS_S3_ENDPOINT_URL": f"https://localhost:{proxy.port}",
                "AWS_S3_REGION_NAME": "us-east-1",
                "aws_access_key_id": "test",
                "aws_secret_access_key": "test",
                "store_timeout_seconds": 5.0,
            }
            async with open_claim_store(StoreSettings(**settings, tls_ca_file=certificates.authority)) as claims:
                assert isinstance(claims, S3ClaimStore)
                assert await claims.read(await claims.write(b"picture", media_type="image/png", tenant=None), tenant=None) == b"picture"
            async with open_claim_store(StoreSettings(**settings)) as claims:
                with pytest.raises(TemporaryError, match="CERTIFICATE_VERIFY_FAILED"):
                    await claims.write(b"picture", media_type="image/png", tenant=None)
    finally:
        server.stop()
