"""Free TCP ports on loopback."""

import json
import random
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pwd import struct_passwd
from typing import Any

import psutil
from psutil import Process as Process

PORT_RANGE = range(20_000, 32_000)
"""The kernel gives no outgoing connection a port of this range, so a port that was free stays free over a restart."""


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(PORT_RANGE, k=len(PORT_RANGE)):
        if len(found) == count:
            break
        if is_port_free(port):
            found.append(port)
    return found


def is_port_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def start(command: Sequence[str], *, record: Path, log: Path, env: Mapping[str, str], user: struct_passwd | None = None) -> psutil.Process:
    """Start `command` in its own session (a Ctrl-C at the terminal does not reach it) and write its identity to `record`."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **user_arguments(user),
        )
    child.returncode = 0  # From here on psutil waits for it, so that the parent's garbage collector need not warn.
    process = psutil.Process(child.pid)
    record.write_text(json.dumps({"pid": process.pid, "created": process.create_time()}))
    return process


def user_arguments(user: struct_passwd | None) -> dict[str, Any]:
    """What makes `subprocess` leave root's rights behind, its groups among them."""
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()} if user else {}


def find(record: Path) -> psutil.Process | None:
    """The recorded process if it still runs. A pid that was given to another process since is not it."""
    try:
        known = json.loads(record.read_text())
        process = psutil.Process(known["pid"])
        alive = process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(process: psutil.Process, *, grace_seconds: float, signal_number: int = signal.SIGTERM) -> None:
    """Ask it to end with the signal `by`, and make it end when the grace is over."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)
        try:
            process.wait(grace_seconds)
        except psutil.TimeoutExpired:
            kill(process)


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
        process.wait(10)
