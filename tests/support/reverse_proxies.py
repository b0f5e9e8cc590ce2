"""A real nginx or Caddy with TLS in front of a gateway, configured as docs/http.md shows it."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.certificates import Certificates
from tests.support.debian_programs import find_program

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
START_SECONDS = 15.0
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {server}
}}
"""
CADDY = "{{\n admin off\n auto_https disable_redirects\n skip_install_trust\n}}\n{server}"


def documented_example(language: str) -> str:
    """The one code block of docs/http.md in a language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(block)


def replaced(text: str, replacements: dict[str, str]) -> str:
    """Raises AssertionError when the text lacks one of the words."""
    for word, replacement in replacements.items():
        assert word in text, word
        text = text.replace(word, replacement)
    return text


@asynccontextmanager
async def open_nginx(folder: Path, certificates: Certificates, gateway_port: int, **changes: str) -> AsyncIterator[int]:
    """The port with TLS. `changes`: directives of the documented example to replace, by their names."""
    port = free_port()
    server = replaced(
        documented_example("nginx"),
        {
            "listen 443": f"listen 127.0.0.1:{port}",
            "api.example.com;": "localhost;",
            "/etc/ssl/api.example.com.pem": str(certificates.server),
            "/etc/ssl/api.example.com.key": str(certificates.key),
            "127.0.0.1:8080": f"127.0.0.1:{gateway_port}",
        },
    )
    for name, directive in changes.items():
        server, count = re.subn(rf"(?m)^\s*{name} [^\n]*\n", f"        {directive}\n", server)
        assert count, name
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, server=server))
    async with running([find_program("nginx", "nginx-light"), "-p", str(folder), "-c", str(config)], port, {}):
        yield port


@asynccontextmanager
async def open_caddy(folder: Path, certificates: Certificates, gateway_port: int) -> AsyncIterator[int]:
    """The port with TLS."""
    port = free_port()
    server = replaced(
        documented_example("caddy"),
        {
            "api.example.com {": f"https://localhost:{port} {{\n    tls {certificates.server} {certificates.key}",
            "127.0.0.1:8080": f"127.0.0.1:{gateway_port}",
        },
    )
    config = folder / "Caddyfile"
    config.write_text(CADDY.format(server=server))
    environment = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    command = [find_program("caddy", "caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    async with running(command, port, environment):
        yield port


@asynccontextmanager
async def running(command: list[str], port: int, environment: dict[str, str]) -> AsyncIterator[None]:
    """The program, from the moment that it accepts connections on the port; ended at the end."""
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | environment, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await accepts(port):
                assert process.returncode is None, (await errors).decode()
                await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await errors


async def accepts(port: int) -> bool:
    try:
        writer = (await asyncio.open_connection("127.0.0.1", port))[1]
    except OSError:
        return False
    writer.close()
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
