"""API keys: who calls. Read from a setting or a file, and from the file again when it changes. Only digests are kept in memory."""

import hashlib
import hmac
import re
import time
from collections.abc import Collection, Iterable
from ipaddress import ip_address
from pathlib import Path

import structlog

from gateway.settings import GatewaySettings

LOOK_AGAIN_SECONDS = 1.0
SHORTEST = 16

log = structlog.get_logger()

Sign = tuple[int, ...]
"""By which a changed file is known."""


class OpenDoor(Exception):
    """The gateway would listen beyond this machine without a single key."""

    def __init__(self, host: str) -> None:
        super().__init__(f"GATEWAY_HOST={host} is open to others: set GATEWAY_API_KEYS or GATEWAY_API_KEYS_FILE, or listen on 127.0.0.1")


class Keys:
    """Names by the sha256 of their key. `needed` is false only where nobody set any and the gateway listens on this machine alone.

    `keyless`: paths that need none; where there are some, all others stay closed until there is a key.
    """

    def __init__(self, settings: GatewaySettings, keyless: Collection[str] = ()) -> None:
        self._said = parse(settings.api_keys.get_secret_value().replace(",", "\n").split()) if settings.api_keys else {}
        self._file, self._looked = settings.api_keys_file, 0.0
        self._seen: Sign = ()
        self._known = dict(self._said)
        if self._file:
            self._read(_changed(self._file), self._file)
        self.needed = bool(self._said or self._file) or not loopback(settings.host)
        if self.needed and not (self._said or self._file or keyless):
            raise OpenDoor(settings.host)

    def name_of(self, key: str) -> str | None:
        """Whose key this is. Every known key is compared, so that the time taken tells nothing."""
        self._look_again()
        found, given = None, digest(key)
        for known, name in self._known.items():
            if hmac.compare_digest(known, given):
                found = name
        return found

    def digests(self, name: str | None = None) -> list[bytes]:
        """The digests of all keys, or of those that bear a name."""
        self._look_again()
        return [known for known, owner in self._known.items() if name is None or owner == name]

    def _look_again(self) -> None:
        """A file that cannot be read leaves things as they are: a slip of an editor must not lock everyone out."""
        if self._file is None or time.monotonic() - self._looked < LOOK_AGAIN_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            if (changed := _changed(self._file)) != self._seen:
                self._read(changed, self._file)
                log.info("keys.read", keys=len(self._known))
        except (OSError, ValueError) as error:
            log.warning("keys.unreadable", file=str(self._file), error=str(error))

    def _read(self, changed: Sign, file: Path) -> None:
        """The sign was taken before: what is written during the reading is read next time."""
        self._known, self._seen = self._said | parse(_lines(file)), changed


def parse(lines: Iterable[str]) -> dict[bytes, str]:
    """`name:key` a line. Raises ValueError for what is none, without repeating it: it may be a key."""
    found = {}
    for number, line in enumerate(lines, 1):
        name, _, key = (part.strip() for part in line.partition(":"))
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or len(key) < SHORTEST:
            raise ValueError(f"API key {number} is no `name:key` with a key of at least {SHORTEST} characters")
        found[digest(key)] = name
    return found


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _changed(file: Path) -> Sign:
    """Another file put in its place may bear an old time."""
    seen = file.stat()
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
