"""A real PgBouncer in front of the tests' PostgreSQL."""

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from ops.local.daemon import free_ports
from tests.support.certificates import Certificates
from tests.support.debian_programs import find_program

RUNS_AS = "nobody"
"""PgBouncer refuses to run as root."""


@asynccontextmanager
async def open_pgbouncer(
    database_url: str, *, pool_mode: str = "transaction", pool_size: int = 4, certificates: Certificates | None = None, **options: str
) -> AsyncIterator[str]:
    """Yields the URL through PgBouncer. Its clients and its own connections authenticate with the password of `database_url`.

    With `certificates` it requires TLS of its clients.
    """
    program, port, server = find_program("pgbouncer", "pgbouncer"), free_ports(1)[0], urlsplit(database_url)
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "pool_mode": pool_mode,
        "default_pool_size": str(pool_size),
        "max_client_conn": "200",
    } | options
    with TemporaryDirectory(prefix="atelier-pgbouncer-") as folder:
        if certificates:
            settings |= {"client_tls_sslmode": "require", "client_tls_key_file": f"{folder}/key", "client_tls_cert_file": f"{folder}/cert"}
            shutil.copy(certificates.key, f"{folder}/key")
            shutil.copy(certificates.server, f"{folder}/cert")
        users, configuration = Path(folder) / "users.txt", Path(folder) / "pgbouncer.ini"
        users.write_text(f'"{server.username}" "{unquote(server.password or "")}"\n')
        lines = ["[databases]", f"{server.path[1:]} = host={server.hostname} port={server.port}", "[pgbouncer]", f"auth_file = {users}"]
        configuration.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
        process = await start(program, configuration)
        try:
            await wait_until_listening(process, port)
            yield database_url.replace(f"@{server.hostname}:{server.port}/", f"@127.0.0.1:{port}/")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def start(program: str, configuration: Path) -> asyncio.subprocess.Process:
    user = []
    if os.geteuid() == 0:
        user = ["-u", RUNS_AS]
        account = pwd.getpwnam(RUNS_AS)
        for path in (configuration.parent, *configuration.parent.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    null = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(shutil.which(program) or program, *user, str(configuration), stdout=null, stderr=null)


async def wait_until_listening(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            assert process.returncode is None, "PgBouncer ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
