"""`atelier doctor`: looks at this machine from outside and names the cure for whatever is missing. Changes nothing."""

import json
import os
import shutil
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console

from ops.errors import SetupError
from ops.local import install, postgres
from ops.settings import LocalSettings

ROOM_NEEDED = 6 << 30
"""Bytes: the virtual environment with the models extra takes 3 GB, data and pictures the rest."""


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str
    cure: str = ""


def doctor(arguments: Namespace) -> int:
    checks = examine(LocalSettings())
    ok = all(check.ok for check in checks)
    if arguments.json:
        sys.stdout.write(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2) + "\n")
    else:
        tell(checks)
    return 0 if ok else 1


def examine(settings: LocalSettings) -> list[Check]:
    looks: list[Callable[[LocalSettings], Check]] = [python, broker, database, store, models, room]
    return [look(settings) for look in looks]


def tell(checks: list[Check]) -> None:
    console = Console(highlight=False)
    for check in checks:
        console.print(f"[green]✓[/green] {check.name}: {check.detail}" if check.ok else f"[red]✗[/red] {check.name}: {check.detail}")
        if not check.ok:
            console.print(f"    cure: {check.cure}")


def python(_: LocalSettings) -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def broker(settings: LocalSettings) -> Check:
    if url := settings.given_amqp_url:
        return reachable("rabbitmq", url, 5672, "start that broker, or unset AMQP_URL for a private node")
    found = install.search(settings)
    cure = "make demo installs it" if settings.may_install and install.way_to_install() else install.WAYS_OUT
    return Check("rabbitmq", found is not None, str(found or "no rabbitmq-server on this machine"), "" if found else cure)


def database(settings: LocalSettings) -> Check:
    if url := settings.given_database_url:
        return reachable("postgres", url, 5432, "start that server, or unset DATABASE_URL for an embedded one")
    try:
        return Check("postgres", True, f"embedded, {postgres.programs()}")
    except SetupError as error:
        return Check("postgres", False, "the embedded server is not installed", str(error))


def store(settings: LocalSettings) -> Check:
    url = settings.given_store_url or settings.local_folder.resolve().as_uri()
    if url.startswith("s3://"):
        installed = find_spec("aioboto3") is not None
        return Check("store", installed, url if installed else "aioboto3 is not installed", "" if installed else "pip install -e '.[s3]'")
    folder = Path(unquote(urlsplit(url).path))
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    writable = may_write(standing)
    return Check("store", writable, str(folder), "" if writable else f"let this user write to {standing}, or set STORE_URL")


def models(_: LocalSettings) -> Check:
    missing = [name for name in ("torch", "transformers", "diffusers", "peft") if find_spec(name) is None]
    detail = f"not installed: {', '.join(missing)}" if missing else "torch, transformers, diffusers, peft"
    return Check("models", not missing, detail, "pip install -e '.[models]' --constraint constraints.txt" if missing else "")


def room(settings: LocalSettings) -> Check:
    folder = settings.local_folder.resolve()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    return Check(
        "disk", free > ROOM_NEEDED, f"{free / (1 << 30):.0f} GiB free", "" if free > ROOM_NEEDED else "make room: 6 GiB are needed"
    )


def reachable(name: str, url: str, usual_port: int, cure: str) -> Check:
    """Only a connection is tried; what is behind it is not asked for a password."""
    place = urlsplit(url)
    where = f"{place.hostname or '127.0.0.1'}:{place.port or usual_port}"
    try:
        socket.create_connection((place.hostname or "127.0.0.1", place.port or usual_port), timeout=3).close()
    except OSError as error:
        return Check(name, False, f"{where} does not answer: {error}", cure)
    return Check(name, True, f"{where} answers")


def may_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
