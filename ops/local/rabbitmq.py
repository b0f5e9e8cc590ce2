"""A private RabbitMQ node: own name, ports, cookie, user, data, logs and epmd, all in one folder, on loopback only.

It knows nothing of other nodes of this machine, and they nothing of it. `kill` and `start` are there for tests that break it.
"""

import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ops.errors import SetupError
from ops.local import daemon
from ops.local.rabbitmq_slim import link_slim_installation
from ops.local.shared_server import SharedServer, shared_servers
from ops.settings import inherited_environment

START_SECONDS = 60.0
STOP_SECONDS = 30.0
RABBITMQCTL_SECONDS = 60.0
NODE_NAME = "atelier@localhost"

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
default_user = atelier
default_pass = {password}
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
default_user_tags.administrator = true
# A delivery may be worked on for three hours; the default of 30 minutes would give a long order to a second worker.
consumer_timeout = 10800000
# The write-ahead log of the quorum queues is held in memory up to this size.
raft.wal_max_size_bytes = 33554432
disk_free_limit.absolute = 100MB
log.file.level = info
log.connection.level = error
log.file.rotation.size = 10485760
log.file.rotation.count = 2
"""

ERLANG_FLAGS = "+S 2:2 +SDcpu 1:1 +SDio 2 +P 65536 +t 1048576 -kernel inet_dist_use_interface {127,0,0,1}"
"""Two schedulers, small process and atom tables: the node is for one machine."""


@dataclass(frozen=True)
class Identity:
    """What stays the same over restarts, so that clients find the node again."""

    amqp: int
    distribution: int
    epmd: int
    password: str


class RabbitNode:
    """The node whose life is in `folder`. `server` is the `rabbitmq-server` script. All methods block."""

    def __init__(self, folder: Path, server: Path) -> None:
        self.folder, self._server = folder.resolve(), server

    @property
    def url(self) -> str:
        return f"amqp://atelier:{self.identity.password}@127.0.0.1:{self.identity.amqp}/"

    @cached_property
    def identity(self) -> Identity:
        kept = self.folder / "identity.json"
        if kept.exists():
            return Identity(**json.loads(kept.read_text()))
        return self._new_identity(secrets.token_hex(16))

    def start(self) -> None:
        """Start the node, or take over one that runs already. Raises SetupError when it does not answer in time."""
        if self._node and accepts_amqp(self.identity.amqp):
            return
        self._stop_node()
        self._write_configuration()
        self._start_epmd()
        slim = link_slim_installation(self._server, self.folder / "home")
        if (slim and self._launch({"RABBITMQ_SCRIPTS_DIR": f"{slim}/sbin", "RABBITMQ_PLUGINS_DIR": f"{slim}/plugins"})) or self._launch({}):
            return
        self.stop()
        raise SetupError(f"The private RabbitMQ node did not start. Its last words:\n{self._log_tail()}")

    def stop(self) -> None:
        self._stop_node()
        if self._epmd:
            daemon.stop(self._epmd, grace_seconds=2)

    def kill(self) -> None:
        """As a power cut would: no goodbye to anyone. `start` brings it back on the same port with its durable queues."""
        if self._node:
            daemon.kill(self._node)

    def restart(self) -> None:
        self._stop_node()
        self.start()

    def rabbitmqctl(self, *arguments: str) -> None:
        """`rabbitmqctl`, spoken to this node. Raises CalledProcessError when it refuses."""
        program = self._server.with_name("rabbitmqctl")
        subprocess.run([program, "-q", *arguments], env=self.environment, check=True, capture_output=True, timeout=RABBITMQCTL_SECONDS)

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of the node and of every `rabbitmqctl` that shall speak with it."""
        ours = {
            "HOME": self.folder,  # Erlang makes its cookie there
            "PATH": f"{inherited_environment().get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node, instead of staying as its parent
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self.identity.epmd,
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.identity.amqp,
            "RABBITMQ_DIST_PORT": self.identity.distribution,
            "RABBITMQ_BASE": self.folder,
            "RABBITMQ_MNESIA_BASE": self.folder / "data",
            "RABBITMQ_LOG_BASE": self.folder / "logs",
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "enabled_plugins",
            "RABBITMQ_PID_FILE": self.folder / "rabbitmq.pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_FLAGS,
        }
        return {name: str(value) for name, value in ours.items()}

    @property
    def _node(self) -> daemon.Process | None:
        return daemon.find(self.folder / "node.json")

    @property
    def _epmd(self) -> daemon.Process | None:
        return daemon.find(self.folder / "epmd.json")

    def _launch(self, overrides: dict[str, str]) -> bool:
        """True when the node answers, False when it died or is still silent after the limit."""
        environment = self.environment | overrides
        node = daemon.start([str(self._server)], record=self.folder / "node.json", log=self.folder / "start.log", env=environment)
        limit = time.monotonic() + START_SECONDS
        while not accepts_amqp(self.identity.amqp):
            if not daemon.is_running(node) or time.monotonic() > limit:
                daemon.stop(node, grace_seconds=STOP_SECONDS)
                return False
            time.sleep(0.05)
        return True

    def _stop_node(self) -> None:
        if self._node:
            daemon.stop(self._node, grace_seconds=STOP_SECONDS)

    def _new_identity(self, password: str) -> Identity:
        amqp, distribution, epmd = daemon.free_ports(3)
        self.folder.mkdir(parents=True, exist_ok=True)
        made = Identity(amqp, distribution, epmd, password)
        kept = self.folder / "identity.json"
        kept.touch(mode=0o600)
        kept.write_text(json.dumps(asdict(made)))
        return made

    def _write_configuration(self) -> None:
        """Write the configuration. Ports that someone else took meanwhile are given up for others."""
        wanted = [self.identity.amqp, self.identity.distribution] + ([] if self._epmd else [self.identity.epmd])
        if not all(daemon.is_port_free(port) for port in wanted):
            if self._epmd:
                daemon.stop(self._epmd, grace_seconds=2)
            self.__dict__.pop("environment", None)
            self.__dict__["identity"] = self._new_identity(self.identity.password)
        for name in ("data", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "rabbitmq.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(CONFIGURATION.format(amqp=self.identity.amqp, password=self.identity.password))
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "enabled_plugins").write_text("[].\n")  # the management plugin alone would cost some 50 MB
        (self.folder / "rabbitmq-env.conf").write_text("")

    def _start_epmd(self) -> None:
        """Our own, in the foreground: the one that Erlang would start by itself stays behind as a daemon."""
        program = shutil.which("epmd", path=self.environment["PATH"])
        if program and not self._epmd:
            daemon.start([program], record=self.folder / "epmd.json", log=self.folder / "epmd.log", env=self.environment)

    def _log_tail(self) -> str:
        logs = [self.folder / "start.log", *sorted((self.folder / "logs").glob("*.log"))]
        return "\n".join(line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()[-15:])


def accepts_amqp(port: int) -> bool:
    """True when an AMQP 0-9-1 server says its first word (a method frame, type 1) on loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as line:
            line.settimeout(5)
            line.sendall(b"AMQP\x00\x00\x09\x01")
            return line.recv(1) == b"\x01"
    except OSError:
        return False


@asynccontextmanager
async def private_rabbitmq(folder: Path, server: Path) -> AsyncIterator[RabbitNode]:
    """A running node. Several processes may share the folder: the last one out stops the node."""
    node = RabbitNode(folder, server)
    async with shared_servers(SharedServer(node, folder)):
        yield node
