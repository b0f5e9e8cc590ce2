"""The local services start, answer, survive a kill, are shared, and leave no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import aio_pika
import asyncpg
import psutil
import pytest
from pydantic import SecretStr

from ops.errors import SetupError
from ops.local import daemon
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode, accepts_amqp
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.local.shared_server import SharedServer
from ops.local.stack import local_stack, stop_orphans
from ops.settings import LocalSettings

ROOT = Path(__file__).parents[2]


async def declare(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("durable", durable=True, arguments={"x-queue-type": "quorum"})


async def publish(url: str, body: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key="durable", mandatory=True)


async def receive(url: str) -> bytes:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("durable")
        message = await queue.get(timeout=10)
        await message.ack()
        return message.body


async def test_confirmed_message_survives_broker_kill(rabbitmq: RabbitNode) -> None:
    """The port, the user and the queues are the same after a SIGKILL.

    The restart before it is for RabbitMQ 3.10, where a quorum queue that is a few seconds old when the node is killed finds no leader
    afterwards, unless it has been written to disk.
    """
    url = rabbitmq.url
    await declare(url)
    rabbitmq.restart()
    await publish(url, b"persistent")

    rabbitmq.kill()
    assert not accepts_amqp(rabbitmq.identity.amqp)
    rabbitmq.start()

    assert rabbitmq.url == url
    assert await receive(url) == b"persistent"


async def test_consumer_timeout_is_three_hours(rabbitmq: RabbitNode) -> None:
    conf = (rabbitmq.folder / "rabbitmq.conf").read_text()

    assert "consumer_timeout = 10800000" in conf


async def test_node_listens_on_loopback_only(rabbitmq: RabbitNode) -> None:
    records = [rabbitmq.folder / "node.json", rabbitmq.folder / "epmd.json"]
    pids = [psutil.Process(int(record.read_text().split(":")[1].split(",")[0])) for record in records]
    listening = {line.laddr.ip for process in pids for line in process.net_connections(kind="tcp") if line.status == psutil.CONN_LISTEN}

    assert listening
    assert all(ip_address(ip).is_loopback for ip in listening)


async def test_committed_row_survives_database_kill(postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("create table durable (value text)")
    await connection.execute("insert into durable values ('persistent')")
    postgres.kill()
    connection.terminate()

    postgres.start()

    connection = await asyncpg.connect(postgres.url)
    try:
        assert await connection.fetchval("select value from durable") == "persistent"
    finally:
        await connection.close()


async def test_database_starts_in_closed_folders_and_changes_no_mode(tmp_path: Path) -> None:
    """All folders above the data are closed to the server's user, as the home of root is."""
    folder = tmp_path / "closed" / "postgres"
    folder.mkdir(parents=True)
    for closed in (folder, folder.parent):
        closed.chmod(0o700)
    modes = {path: path.stat().st_mode for path in (folder, *folder.parents)}
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        server.restart()
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("select 1") == 1
        await connection.close()
    finally:
        server.stop()
    assert {path: path.stat().st_mode for path in modes} == modes


async def test_database_requires_password(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.url.replace(postgres.identity.password, "guessed"))


def test_shared_server_stops_with_last_user(tmp_path: Path) -> None:
    one, other = EmbeddedPostgres(tmp_path / "one"), EmbeddedPostgres(tmp_path / "other")
    first, second, elsewhere = (
        SharedServer(one, one.folder),
        SharedServer(EmbeddedPostgres(one.folder), one.folder),
        SharedServer(other, other.folder),
    )
    try:
        for share in (first, second, elsewhere):
            share.acquire()
        assert one.identity.port != other.identity.port

        first.release()
        assert not daemon.is_port_free(one.identity.port)
        second.release()
        assert daemon.is_port_free(one.identity.port)
        assert not daemon.is_port_free(other.identity.port)
    finally:
        for share in (first, second, elsewhere):
            share.release()


STARTER = """
import sys, time
from pathlib import Path
from ops.local.rabbitmq import RabbitNode
from ops.local.shared_server import SharedServer
node = RabbitNode(Path(sys.argv[1]), Path(sys.argv[2]))
SharedServer(node, node.folder).acquire()
print("acquired", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def orphaned(tmp_path_factory: pytest.TempPathFactory) -> RabbitNode:
    """A node whose starter was killed with SIGKILL."""
    folder = tmp_path_factory.mktemp("orphan")
    server = find_or_install_rabbitmq(LocalSettings())
    with subprocess.Popen([sys.executable, "-c", STARTER, folder, server], cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        try:
            assert starter.stdout.readline() == "acquired\n"
        finally:
            starter.kill()
    return RabbitNode(folder, server)


def test_orphaned_node_is_adopted_and_stopped(orphaned: RabbitNode) -> None:
    """Its epmd too: no process of the folder is left."""
    share = SharedServer(orphaned, orphaned.folder)
    try:
        started = time.monotonic()
        share.acquire()
        assert time.monotonic() - started < 1
        assert accepts_amqp(orphaned.identity.amqp)
    finally:
        share.release()

    assert daemon.is_port_free(orphaned.identity.amqp)
    assert daemon.is_port_free(orphaned.identity.epmd)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(orphaned.folder) in " ".join(p.info["cmdline"] or ())]


async def test_configured_urls_are_used_unchanged(tmp_path: Path) -> None:
    """No service is started, and the folder is not created."""
    folder = tmp_path / ".local"
    settings = LocalSettings(
        amqp_url=SecretStr("amqp://elsewhere"),
        database_url=SecretStr("postgresql://elsewhere"),
        store_url="s3://bucket",
        local_folder=folder,
    )

    async with local_stack(settings) as urls:
        assert urls.environment == {
            "AMQP_URL": "amqp://elsewhere", "DATABASE_URL": "postgresql://elsewhere", "STORE_URL": "s3://bucket", "DATABASE_DIRECT_URL": "",
        }  # fmt: skip

    assert not folder.exists()


async def test_missing_server_names_three_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = LocalSettings(server_path=str(tmp_path), may_install=False, local_folder=tmp_path / ".local")

    with pytest.raises(SetupError) as raised:
        async with local_stack(settings):
            pass

    message = str(raised.value)
    assert all(remedy in message for remedy in ("apt-get install rabbitmq-server", "AMQP_URL=", "docker compose up"))


@pytest.mark.timeout(300)
def test_up_stops_on_ctrl_c_and_down_cleans_up_after_kill(tmp_path: Path) -> None:
    """`atelier up` and Ctrl-C; `atelier up` again in the same folder and SIGKILL; `atelier down`. No secret is printed."""
    first, started = start_up(tmp_path)
    first.send_signal(signal.SIGINT)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 0, output
    assert "AMQP_URL=amqp://atelier-actor:***@127.0.0.1:" in started + output
    assert [secret for secret in secrets_in(tmp_path) if secret in started + output] == []
    assert processes_in(tmp_path) == []

    second, _ = start_up(tmp_path)
    second.kill()
    second.communicate(timeout=60)
    assert processes_in(tmp_path) != []

    stop_orphans(LocalSettings(local_folder=tmp_path / ".local"))
    assert processes_in(tmp_path) == []


def secrets_in(folder: Path) -> list[str]:
    """The passwords of the services of a folder, and the secret of the installation."""
    identities = [json.loads(file.read_text()) for file in folder.rglob("identity.json")]
    users = [json.loads(file.read_text()) for file in folder.rglob("users.json")]
    files = [file for file in folder.rglob("*") if file.name in {"identity.json", "users.json", "secret"}]
    assert len(files) >= 3
    assert [file for file in files if file.stat().st_mode & 0o077] == []
    passwords = [identity["password"] for identity in identities] + [password for by_user in users for password in by_user.values()]
    assert len(passwords) == 2 + 4
    return passwords + [file.read_text().strip() for file in files if file.name == "secret"]


def start_up(folder: Path) -> "tuple[subprocess.Popen[str], str]":
    """The running process, and what it has printed."""
    environment = {name: value for name, value in os.environ.items() if name not in {"AMQP_URL", "DATABASE_URL", "STORE_URL"}}
    up = subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "up", "watermark", "gateway"],
        cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert up.stdout is not None
    output = []
    for line in up.stdout:
        output.append(line)
        if "users and passwords of the broker" in line:  # the last line of the report
            return up, "".join(output)
    raise AssertionError("".join(output))


def processes_in(folder: Path) -> list[str]:
    """The names of the processes whose command line or current folder has the folder."""
    processes = psutil.process_iter(["cmdline", "cwd"])
    return [p.name() for p in processes if str(folder) in " ".join([*(p.info["cmdline"] or ()), p.info["cwd"] or ""])]
