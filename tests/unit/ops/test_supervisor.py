"""Actors as child processes: a death is named and mended, a leave is orderly, a lost parent lets go."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import supervisor
from ops.errors import SetupError
from ops.supervisor import ChildProcess, Supervisor

ROOT = Path(__file__).parents[3]


def child_script(code: str, said: list[tuple[str, str]]) -> ChildProcess:
    return ChildProcess("watermark", [sys.executable, "-c", code], dict(os.environ), lambda step, line: said.append((step, line)))


async def test_crashed_child_is_reported_and_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.0)
    said: list[tuple[str, str]] = []
    child = child_script("print('born'); raise SystemExit(7)", said)
    watch = asyncio.create_task(child.supervise())
    try:
        async with asyncio.timeout(20):
            while said.count(("watermark", "born")) < 2:
                await asyncio.sleep(0.01)
    finally:
        await child.stop()
        await watch

    assert ("watermark", "died with status 7; starts again in 0.0 s") in said


async def test_child_is_terminated_and_its_output_drained() -> None:
    said: list[tuple[str, str]] = []
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('goodbye'))); print('actors.ready', flush=True); signal.pause()"
    child = child_script(code, said)
    watch = asyncio.create_task(child.supervise())
    await Supervisor([child]).wait_until_ready(timeout_seconds=20)

    await child.stop()
    await watch

    assert said[-1] == ("watermark", "goodbye")
    assert child.process is not None
    assert child.process.returncode == 0


async def test_child_not_ready_in_time_is_named() -> None:
    with pytest.raises(SetupError, match="watermark"):
        await Supervisor([child_script("", [])]).wait_until_ready(timeout_seconds=0)


def test_process_with_exit_with_parent_ends_with_parent() -> None:
    leash = "threading.Thread(target=leave_when_let_go).start()"
    code = f"import signal, threading; from ops.cli import leave_when_let_go; {leash}; signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()

        assert child.wait(20) == -15
