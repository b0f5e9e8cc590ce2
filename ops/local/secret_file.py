"""The secret of a local installation: a file that only its owner can read, created at the first start.

It is used with the private broker alone. Other machines may use a broker that is given; ATELIER_SECRET must be given then as well.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from bus.ids import MIN_SECRET_LENGTH
from bus.persistence.installation_secret import create_secret
from ops.errors import SetupError
from ops.settings import LocalSettings

SECRET_FILE = "secret"  # noqa: S105 - the name of the file


def local_secret(settings: LocalSettings) -> str | None:
    """ATELIER_SECRET, or that of the local folder; None for a given broker without one."""
    if settings.secret:
        return settings.secret.get_secret_value()
    return None if settings.given_amqp_url else read_or_create_secret(settings.local_folder.resolve() / SECRET_FILE)


def secret_fields(settings: LocalSettings) -> dict[str, Any]:
    """The fields of `BusSettings` with which a command of this process derives the same ids, and signs as the others do."""
    return {"secret": local_secret(settings), "sign_messages": settings.sign_messages}


def read_or_create_secret(file: Path) -> str:
    """The secret of a file; of processes that start at the same time, one creates it, whole. Raises SetupError for an unusable file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        descriptor, draft = tempfile.mkstemp(dir=file.parent)  # mode 0600
        try:
            os.write(descriptor, create_secret().encode())
            os.close(descriptor)
            with suppress(FileExistsError):
                os.link(draft, file)
        finally:
            Path(draft).unlink()
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"The secret of the local services cannot be read: {error}") from error
    if len(secret) < MIN_SECRET_LENGTH:
        raise SetupError(f"{file} is shorter than {MIN_SECRET_LENGTH} characters: remove it, and a new secret is created.")
    return secret
