"""Long-running child processes: started, found again by their record, and stopped; their TCP ports on loopback and their identity file."""

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
"""Below the range of ephemeral ports: no outgoing connection takes one, so a free port is still free after a restart."""


def free_ports(count: int) -> list[int]:
    """`count` different ports on which no process listens now."""
    ports: list[int] = []
    for port in random.sample(PORT_RANGE, k=len(PORT_RANGE)):
        if len(ports) == count:
            break
        if is_port_free(port):
            ports.append(port)
    return ports


def is_port_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def load_identity(folder: Path) -> dict[str, Any] | None:
    """The ports and the password that a server of `folder` keeps over restarts; None before its first start."""
    file = folder / "identity.json"
    return dict(json.loads(file.read_text())) if file.exists() else None


def save_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "identity.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(identity))


def log_tail(*logs: Path) -> str:
    """The last lines of each log that exists, for an error message."""
    return "\n".join(line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()[-15:])


def start(
    command: Sequence[str],
    *,
    record: Path,
    log: Path,
    env: Mapping[str, str],
    user: struct_passwd | None = None,
    folder: Path = Path("/"),
) -> psutil.Process:
    """Start `command` in its own session, which a Ctrl-C at the terminal does not reach, and write its pid and start time to `record`.

    `folder`: its current folder.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **user_arguments(user),
        )
    child.returncode = 0  # psutil waits for it from here on; without a return code Popen's finalizer would warn
    process = psutil.Process(child.pid)
    record.write_text(json.dumps({"pid": process.pid, "created": process.create_time()}))
    return process


def user_arguments(user: struct_passwd | None) -> dict[str, Any]:
    """Arguments with which `subprocess` drops to `user`, without the groups of root."""
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()} if user else {}


def find(record: Path) -> psutil.Process | None:
    """The recorded process if it still runs; None when it has ended or its pid belongs to another process now."""
    try:
        recorded = json.loads(record.read_text())
        process = psutil.Process(recorded["pid"])
        alive = process.create_time() == recorded["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(process: psutil.Process, *, grace_seconds: float, signal_number: int = signal.SIGTERM) -> None:
    """Send `signal_number`, and SIGKILL when the process is still there after the grace period."""
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
