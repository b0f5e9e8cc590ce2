"""Free TCP ports on loopback."""

import random
import socket

BELOW_EPHEMERAL = range(20_000, 32_000)
"""The kernel gives no outgoing connection a port of this range, so a port that was free stays free over a restart."""


def free(count: int) -> list[int]:
    """`count` different ports that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(BELOW_EPHEMERAL, k=len(BELOW_EPHEMERAL)):
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
