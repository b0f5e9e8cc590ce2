"""Actors as child processes: a crash is reported and restarted, a stop is orderly, and a child ends with its parent."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import supervisor
from ops.errors import SetupError
from ops.supervisor import ChildProcess, Supervisor, open_supervisor

ROOT = Path(__file__).parents[3]


def child_script(code: str, output: list[tuple[str, str]]) -> ChildProcess:
    return ChildProcess("watermark", [sys.executable, "-c", code], dict(os.environ), lambda step, line: output.append((step, line)))


def write_program(folder: Path, script: str) -> str:
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


async def test_crashed_child_is_reported_and_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.0)
    output: list[tuple[str, str]] = []
    child = child_script("print('started'); raise SystemExit(7)", output)
    task = asyncio.create_task(child.supervise())
    try:
        async with asyncio.timeout(20):
            while output.count(("watermark", "started")) < 2:
                await asyncio.sleep(0.01)
    finally:
        await child.stop()
        await task

    assert ("watermark", "exited with status 7; restarts in 0.0 s") in output


async def test_child_is_terminated_and_its_output_drained() -> None:
    output: list[tuple[str, str]] = []
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('goodbye'))); print('actors.ready', flush=True); signal.pause()"
    child = child_script(code, output)
    task = asyncio.create_task(child.supervise())
    await Supervisor([child]).wait_until_ready(timeout_seconds=20)

    await child.stop()
    await task

    assert output[-1] == ("watermark", "goodbye")
    assert child.process is not None
    assert child.process.returncode == 0


async def test_supervisor_that_is_closed_at_once_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`stop` is called while the processes are being created."""
    monkeypatch.setattr(sys, "executable", write_program(tmp_path, "exec sleep 600"))
    async with asyncio.timeout(20):
        async with open_supervisor(["watermark", "upload"], dict(os.environ), lambda *_: None) as opened:
            await asyncio.sleep(0)
    assert [child.process.returncode for child in opened.children if child.process] == [-15, -15]


async def test_child_not_ready_in_time_is_named() -> None:
    with pytest.raises(SetupError, match="watermark"):
        await Supervisor([child_script("", [])]).wait_until_ready(timeout_seconds=0)


def test_process_with_exit_with_parent_ends_with_parent() -> None:
    start = "threading.Thread(target=exit_with_parent).start()"
    code = f"import signal, threading; from ops.supervisor import exit_with_parent; {start}; signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()

        assert child.wait(20) == -15
