"""API keys, from a setting and from a file that is read again when it changes. Compared by their digests."""

import hashlib
import hmac
import re
import time
from collections.abc import Collection, Iterable
from ipaddress import ip_address
from pathlib import Path

import structlog

from bus.masking import remember_token
from gateway.middleware.rate_limit import RateLimiter
from gateway.settings import GatewaySettings

FAILURE_WINDOW_SECONDS = 60.0
RELOAD_CHECK_SECONDS = 1.0
MIN_KEY_LENGTH = 16
KEY_PATTERN = re.compile(r"[\x21-\x7e]+")

log = structlog.get_logger()

FileSignature = tuple[int, ...]
"""Modification time, inode and size."""


class InsecureBindError(Exception):
    """The gateway would listen on a public address without an API key."""

    def __init__(self, host: str) -> None:
        super().__init__(f"GATEWAY_HOST={host} is not loopback: set GATEWAY_API_KEYS or GATEWAY_API_KEYS_FILE, or listen on 127.0.0.1")


class ApiKeys:
    """Names by the SHA-256 of their key. `needed` is false only on a loopback address without any key.

    `keyless`: paths that need no key; with them, the gateway may start without a key, and refuses all other paths.
    `failures`: by address, requests and logins without a valid key.
    Raises InsecureBindError, ValueError.
    """

    def __init__(self, settings: GatewaySettings, keyless: Collection[str] = ()) -> None:
        listed = settings.api_keys.get_secret_value().replace(",", "\n").split() if settings.api_keys else []
        self._from_setting = parse_keys(listed, "GATEWAY_API_KEYS")
        if settings.api_keys and not listed:
            raise ValueError("GATEWAY_API_KEYS has no key: unset it, or list `name:key` pairs")
        self._file, self._checked_at = settings.api_keys_file, 0.0
        self._loaded_signature: FileSignature = ()
        self._names_by_digest = dict(self._from_setting)
        self.failures = RateLimiter(settings.failed_keys, FAILURE_WINDOW_SECONDS)
        if self._file:
            self._load_file(_file_signature(self._file), self._file)
        self.needed = bool(self._from_setting or self._file) or not is_loopback(settings.host)
        if self.needed and not (self._from_setting or self._file or keyless):
            raise InsecureBindError(settings.host)

    def name_of(self, key: str) -> str | None:
        """The name of a key; None for an unknown one. All keys are compared, so that the duration reveals nothing."""
        self._reload_if_changed()
        match, digest = None, key_digest(key)
        for known, name in self._names_by_digest.items():
            if hmac.compare_digest(known, digest):
                match = name
        return match

    def digests(self, name: str | None = None) -> list[bytes]:
        """The digests of all keys, or of those with a name."""
        self._reload_if_changed()
        return [known for known, owner in self._names_by_digest.items() if name is None or owner == name]

    def _reload_if_changed(self) -> None:
        """An unreadable or invalid file changes nothing: an editing mistake must not lock all callers out."""
        if self._file is None or time.monotonic() - self._checked_at < RELOAD_CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        try:
            if (changed := _file_signature(self._file)) != self._loaded_signature:
                self._load_file(changed, self._file)
                log.info("keys.read", keys=len(self._names_by_digest))
        except (OSError, ValueError) as error:
            log.warning("keys.unreadable", file=str(self._file), error=str(error))

    def _load_file(self, signature: FileSignature, file: Path) -> None:
        """The signature was taken before reading, so that a concurrent change is noticed next time."""
        lines = _key_lines(file)
        for line in lines:
            remember_token(line.partition(":")[2].strip())
        from_file = parse_keys(lines, "GATEWAY_API_KEYS_FILE")
        self._names_by_digest, self._loaded_signature = self._from_setting | from_file, signature


def parse_keys(lines: Iterable[str], setting: str) -> dict[bytes, str]:
    """Names by digest, from lines of `name:key`. Raises ValueError without quoting the line, which may contain a key.

    A key that no client could send, and one that two names share, are refused too. `setting`: where the lines are from.
    """
    names: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, key = (part.strip() for part in line.partition(":"))
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or len(key) < MIN_KEY_LENGTH:
            raise ValueError(f"{setting}: API key {number} is not `name:key` with a key of at least {MIN_KEY_LENGTH} characters")
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"{setting}: API key {number} has a blank or a character outside ASCII, which no header can carry")
        if names.setdefault(digest := key_digest(key), name) != name:
            raise ValueError(f"{setting}: API key {number} is the key of {names[digest]} too: give {name} another one")
    return names


def key_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _key_lines(file: Path) -> list[str]:
    """Editors of Windows write a byte order mark."""
    lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _file_signature(file: Path) -> FileSignature:
    """Not the time only: a file moved into its place may be older."""
    status = file.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
