"""A private RabbitMQ node on loopback: its ports, cookie, user, data, logs and epmd are in one folder.

It is isolated from other nodes of this machine. Tests use `kill` and `start` to simulate crashes.
"""

import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ops.errors import SetupError
from ops.local import daemon
from ops.local.rabbitmq_slim import link_slim_installation
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
# A consumer may hold a delivery for three hours; after the default of 30 minutes a long order would be redelivered.
consumer_timeout = 10800000
# Size up to which the write-ahead log of the quorum queues is held in memory.
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
    """What stays the same over restarts, so that clients can reconnect: three ports and the password."""

    amqp: int
    distribution: int
    epmd: int
    password: str


class RabbitNode:
    """The node whose files are in `folder`. `server` is the `rabbitmq-server` script. All methods block."""

    def __init__(self, folder: Path, server: Path) -> None:
        self.folder, self._server = folder.resolve(), server

    @property
    def url(self) -> str:
        return f"amqp://atelier:{self.identity.password}@127.0.0.1:{self.identity.amqp}/"

    @cached_property
    def identity(self) -> Identity:
        saved = daemon.load_identity(self.folder)
        return Identity(**saved) if saved else self._new_identity(secrets.token_hex(16))

    def start(self) -> None:
        """Start the node, or adopt one that runs already. Raises SetupError when it does not answer in time."""
        if self._node and accepts_amqp(self.identity.amqp):
            return
        self._stop_node()
        self._write_configuration()
        self._start_epmd()
        slim = link_slim_installation(self._server, self.folder / "home")
        if (slim and self._launch({"RABBITMQ_SCRIPTS_DIR": f"{slim}/sbin", "RABBITMQ_PLUGINS_DIR": f"{slim}/plugins"})) or self._launch({}):
            return
        self.stop()
        raise SetupError(f"The private RabbitMQ node did not start. The end of its logs:\n{self._log_tail()}")

    def stop(self) -> None:
        self._stop_node()
        if self._epmd:
            daemon.stop(self._epmd, grace_seconds=2)

    def kill(self) -> None:
        """Send SIGKILL. `start` restarts it on the same port with its durable queues."""
        if self._node:
            daemon.kill(self._node)

    def restart(self) -> None:
        self._stop_node()
        self.start()

    @property
    def control_program(self) -> Path:
        return self._server.with_name("rabbitmqctl")

    def rabbitmqctl(self, *arguments: str) -> None:
        """Run `rabbitmqctl` against this node. Raises CalledProcessError when it fails."""
        subprocess.run(
            [self.control_program, "-q", *arguments], env=self.environment, check=True, capture_output=True, timeout=RABBITMQCTL_SECONDS
        )

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of the node and of every `rabbitmqctl` that connects to it."""
        variables = {
            "HOME": self.folder,  # Erlang writes its cookie there
            "PATH": f"{inherited_environment().get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script replaces itself by the node instead of staying its parent
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
        return {name: str(value) for name, value in variables.items()}

    @property
    def _node(self) -> daemon.Process | None:
        return daemon.find(self.folder / "node.json")

    @property
    def _epmd(self) -> daemon.Process | None:
        return daemon.find(self.folder / "epmd.json")

    def _launch(self, overrides: dict[str, str]) -> bool:
        """Start the node. Returns False when it exits, or does not answer within START_SECONDS; it is stopped then."""
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
        identity = Identity(amqp, distribution, epmd, password)
        daemon.save_identity(self.folder, asdict(identity))
        return identity

    def _write_configuration(self) -> None:
        """Write the configuration. Ports that another process has taken meanwhile are replaced."""
        ports = [self.identity.amqp, self.identity.distribution] + ([] if self._epmd else [self.identity.epmd])
        if not all(daemon.is_port_free(port) for port in ports):
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
        (self.folder / "enabled_plugins").write_text("[].\n")  # the management plugin alone would take some 50 MB of memory
        (self.folder / "rabbitmq-env.conf").write_text("")

    def _start_epmd(self) -> None:
        """A private epmd in the foreground; the one that Erlang would start by itself outlives the node."""
        program = shutil.which("epmd", path=self.environment["PATH"])
        if program and not self._epmd:
            daemon.start([program], record=self.folder / "epmd.json", log=self.folder / "epmd.log", env=self.environment)

    def _log_tail(self) -> str:
        return daemon.log_tail(self.folder / "start.log", *sorted((self.folder / "logs").glob("*.log")))


def accepts_amqp(port: int) -> bool:
    """Whether an AMQP 0-9-1 server on loopback answers the protocol header with a method frame (type 1)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(5)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
