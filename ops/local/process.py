"""A process that outlives a crash of its starter: its pid and start time stand in a file, so that the next starter finds it."""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pwd import struct_passwd
from typing import Any

import psutil
from psutil import Process as Process


def start(command: Sequence[str], *, record: Path, log: Path, env: Mapping[str, str], user: struct_passwd | None = None) -> psutil.Process:
    """Start `command` in its own session (a Ctrl-C at the terminal does not reach it) and write its identity to `record`."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, env=dict(env), cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **as_user(user)
        )
    child.returncode = 0  # From here on psutil waits for it, so that the parent's garbage collector need not warn.
    process = psutil.Process(child.pid)
    record.write_text(json.dumps({"pid": process.pid, "created": process.create_time()}))
    return process


def as_user(user: struct_passwd | None) -> dict[str, Any]:
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


def running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(process: psutil.Process, *, grace_seconds: float, by: int = signal.SIGTERM) -> None:
    """Ask it to end with the signal `by`, and make it end when the grace is over."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(by)
        try:
            process.wait(grace_seconds)
        except psutil.TimeoutExpired:
            kill(process)


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
        process.wait(10)
