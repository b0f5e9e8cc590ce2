"""The open connections of this process: how many there may be, which one is closed for a new one, and whether a client is too slow."""

import resource
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.settings import GatewaySettings

RESERVED_FILE_DESCRIPTORS = 256
"""For the broker, the store, files and libraries."""
LOG_INTERVAL_SECONDS = 1.0

log = structlog.get_logger()


class Connection(Protocol):
    @property
    def address(self) -> str | None:
        """Of the client; None when it is unknown."""
        ...

    def evict(self) -> None:
        """Close it at once."""
        ...


class Pace:
    """Whether a client is too slow: its arrears grow with the clock, and shrink by a second for every `bytes_per_second` bytes."""

    def __init__(self, limit_seconds: float, bytes_per_second: int) -> None:
        self._limit_seconds, self._bytes_per_second, self.behind_seconds = limit_seconds, bytes_per_second, 0.0

    def advance(self, seconds: float, transferred_bytes: int) -> bool:
        """Returns True when the arrears exceed the limit."""
        self.behind_seconds = max(0.0, self.behind_seconds + seconds - transferred_bytes / self._bytes_per_second)
        return self.behind_seconds > self._limit_seconds

    def reset(self) -> None:
        self.behind_seconds = 0.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Durations are seconds."""

    header_seconds: float
    idle_seconds: float
    body_seconds: float
    send_seconds: float
    bytes_per_second: int
    max_header_bytes: int
    max_connections: int
    address_connections: int

    @classmethod
    def from_settings(cls, settings: GatewaySettings, max_connections: int) -> "ConnectionLimits":
        return cls(
            header_seconds=settings.header_seconds,
            idle_seconds=settings.idle_seconds,
            body_seconds=settings.body_seconds,
            send_seconds=settings.send_seconds,
            bytes_per_second=settings.min_bytes_per_second,
            max_header_bytes=settings.max_header_bytes,
            max_connections=max_connections,
            address_connections=settings.address_connections,
        )


class ConnectionTable:
    """All open connections, and in which order they began to wait for their clients.

    A new connection is refused only when every other one serves a request.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._open: set[Connection] = set()
        self._open_by_address = Counter[str | None]()
        self._waiting: dict[Connection, None] = {}
        self._waiting_by_address: dict[str | None, dict[Connection, None]] = {}
        self._logged_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Add a connection, which waits for its client; close another one for it when there are too many. False: it is refused."""
        address, admitted = connection.address, True
        if self._open_by_address[address] >= self._limits.address_connections:
            admitted = self._evict_first(self._waiting_by_address.get(address, {}), address)
        if admitted and len(self._open) >= self._limits.max_connections:
            admitted = self._evict_first(self._waiting, address)
        if admitted:
            self._open.add(connection)
            self._open_by_address[address] += 1
            self.mark_waiting(connection)
        return admitted

    def mark_waiting(self, connection: Connection) -> None:
        """Its client has to send the next request, or the rest of a body whose response it has got."""
        if connection in self._open and connection not in self._waiting:
            self._waiting[connection] = None
            self._waiting_by_address.setdefault(connection.address, {})[connection] = None

    def mark_serving(self, connection: Connection) -> None:
        if connection in self._waiting:
            del self._waiting[connection]
            of_address = self._waiting_by_address[connection.address]
            del of_address[connection]
            if not of_address:
                del self._waiting_by_address[connection.address]

    def remove(self, connection: Connection) -> None:
        if connection not in self._open:
            return
        self.mark_serving(connection)
        self._open.remove(connection)
        self._open_by_address[connection.address] -= 1
        if not self._open_by_address[connection.address]:
            del self._open_by_address[connection.address]

    def _evict_first(self, waiting: dict[Connection, None], address: str | None) -> bool:
        longest = next(iter(waiting), None)
        self._log_full(address, evicted=longest is not None)
        if longest is None:
            return False
        self.remove(longest)
        longest.evict()
        return True

    def _log_full(self, address: str | None, *, evicted: bool) -> None:
        """At most one line per second: whoever opens many connections must not fill the log."""
        if (now := time.monotonic()) - self._logged_at >= LOG_INTERVAL_SECONDS:
            self._logged_at = now
            log.warning("connections.full", open=len(self._open), address=address, closed="longest waiting" if evicted else "the new one")


def allow_file_descriptors(max_connections: int) -> int:
    """Raise the process's limit of open files as far as needed and permitted. Returns how many connections it leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_connections + RESERVED_FILE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return max_connections
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == needed:
        return max_connections
    log.warning("connections.reduced", open_files=soft, cure="raise the limit of open files (ulimit -n)")
    return max(1, soft - RESERVED_FILE_DESCRIPTORS)
