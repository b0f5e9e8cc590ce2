"""A command of a benchmark that is stopped ends the services that it started."""

import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import run_command

SLOW_TO_END = """
trap 'sleep 1; touch cleaned; exit 0' TERM
touch ready
while :; do sleep 0.05; done
"""
"""A command that needs a second to clean up."""
IGNORES_THE_SIGNAL = "trap '' TERM; touch ready; while :; do sleep 0.05; done"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def interrupt_when_ready(thread_id: int) -> None:
    wait_for(Path("ready"))
    signal.pthread_kill(thread_id, signal.SIGINT)


def test_command_that_ends_has_its_output_and_status() -> None:
    ended = run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=30.0, environment={"PATH": "/usr/bin:/bin"})
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "out\n", "err\n")


def test_late_command_may_clean_up() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["sh", "-c", SLOW_TO_END], timeout=2.0)
    assert Path("cleaned").exists()


def test_command_of_an_interrupted_process_may_clean_up() -> None:
    interrupter = threading.Thread(target=interrupt_when_ready, args=[threading.get_ident()], daemon=True)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        run_command(["sh", "-c", SLOW_TO_END], timeout=30.0)
    assert Path("cleaned").exists()


def test_command_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CLEANUP_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["sh", "-c", IGNORES_THE_SIGNAL], timeout=0.5)
    assert time.monotonic() - started < 20.0
