"""The RabbitMQ users of the roles with their passwords, as one definitions document, and how it is applied to a broker.

A definitions document has salted hashes of the passwords only. `rabbitmqctl` reads it from standard input, the HTTP API over its
connection: no password is an argument of a process.
"""

import base64
import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from ops.broker_roles import Role
from ops.errors import SetupError
from ops.settings import BrokerUserSettings

RABBITMQCTL_SECONDS = 60.0
HTTP_SECONDS = 20.0


def load_passwords(roles: Iterable[Role], file: Path, settings: BrokerUserSettings) -> dict[str, str]:
    """The password of each user: that of the settings, else that of `file`, else a new one, which is added to the file (mode 0600)."""
    saved: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    given = settings.passwords
    generated = {role.user: secrets.token_hex(16) for role in roles if role.name not in given and role.user not in saved}
    if generated:
        write_private(file, json.dumps(saved | generated, indent=2) + "\n")
    known = saved | generated
    return {role.user: given.get(role.name) or known[role.user] for role in roles}


def write_private(file: Path, text: str) -> None:
    """Replace `file`, readable by this user alone from its first byte on. A folder that is missing is created with mode 0700."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    temporary.replace(file)


def broker_definitions(roles: Iterable[Role], passwords: Mapping[str, str], vhost: str) -> dict[str, Any]:
    """The document that RabbitMQ imports: users, permissions and topic permissions. It changes no other user; the vhost must exist."""
    listed = list(roles)
    return {
        "users": [
            {
                "name": role.user,
                "password_hash": hash_password(passwords[role.user]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": list(role.tags),
            }
            for role in listed
        ],
        "permissions": [
            {"user": role.user, "vhost": vhost, "configure": role.configure, "write": role.write, "read": role.read} for role in listed
        ],
        "topic_permissions": [
            {"user": role.user, "vhost": vhost, "exchange": exchange, "write": keys, "read": ".*"}
            for role in listed
            for exchange, keys in role.writable_keys.items()
        ],
    }


def hash_password(password: str) -> str:
    """RabbitMQ's form: base64 of a salt of four bytes and the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def url_of_user(url: str, user: str, password: str) -> str:
    """The broker's URL with another user."""
    parts = urlsplit(url)
    address = (parts.netloc.rpartition("@"))[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{address}").geturl()


def vhost_of(url: str) -> str:
    return unquote(urlsplit(url).path.removeprefix("/")) or "/"


def import_with_rabbitmqctl(program: Sequence[str | Path], environment: Mapping[str, str] | None, definitions: Mapping[str, Any]) -> None:
    """Raises SetupError with the program's output."""
    command = [*program, "-q", "import_definitions", "--format", "json"]
    document = json.dumps(definitions)
    try:
        result = subprocess.run(
            command, env=environment, input=document, capture_output=True, text=True, timeout=RABBITMQCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{program[0]} could not be run: {error}. Run this on the broker's machine, or give --management URL.") from error
    if result.returncode:
        raise SetupError(f"{program[0]} did not import the users: {(result.stderr or result.stdout).strip()[-1000:]}")


def import_over_http(management_url: str, amqp_url: str, definitions: Mapping[str, Any]) -> None:
    """As the user of `amqp_url`, who must be an administrator. Raises SetupError."""
    parts = urlsplit(amqp_url)
    user = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    try:
        response = httpx.post(f"{management_url.rstrip('/')}/api/definitions", json=dict(definitions), auth=user, timeout=HTTP_SECONDS)
    except httpx.HTTPError as error:
        raise SetupError(f"The management plugin does not answer ({error}): is it enabled?") from error
    if response.is_error:
        raise SetupError(f"The management plugin refused the users: {response.status_code}. The user of AMQP_URL must be an administrator.")
