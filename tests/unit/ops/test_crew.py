"""Actors as child processes: a death is named and mended, a leave is orderly, a lost parent lets go."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import crew
from ops.crew import Crew, Member
from ops.errors import SetupError

ROOT = Path(__file__).parents[3]


def member(code: str, said: list[tuple[str, str]]) -> Member:
    return Member("watermark", [sys.executable, "-c", code], dict(os.environ), lambda step, line: said.append((step, line)))


async def test_a_child_that_dies_is_named_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "FIRST_BACKOFF_SECONDS", 0.0)
    said: list[tuple[str, str]] = []
    child = member("print('born'); raise SystemExit(7)", said)
    watch = asyncio.create_task(child.keep_alive())
    try:
        async with asyncio.timeout(20):
            while said.count(("watermark", "born")) < 2:
                await asyncio.sleep(0.01)
    finally:
        await child.leave()
        await watch

    assert ("watermark", "died with status 7; starts again in 0.0 s") in said


async def test_a_child_is_asked_to_leave_and_its_last_words_are_heard() -> None:
    said: list[tuple[str, str]] = []
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('goodbye'))); print('actors.ready', flush=True); signal.pause()"
    child = member(code, said)
    watch = asyncio.create_task(child.keep_alive())
    await Crew([child]).ready(timeout_seconds=20)

    await child.leave()
    await watch

    assert said[-1] == ("watermark", "goodbye")
    assert child.process is not None
    assert child.process.returncode == 0


async def test_who_is_not_ready_in_time_is_named() -> None:
    with pytest.raises(SetupError, match="watermark"):
        await Crew([member("", [])]).ready(timeout_seconds=0)


def test_a_process_on_a_leash_leaves_when_its_starter_is_gone() -> None:
    leash = "threading.Thread(target=leave_when_let_go).start()"
    code = f"import signal, threading; from ops.cli import leave_when_let_go; {leash}; signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()

        assert child.wait(20) == -15
