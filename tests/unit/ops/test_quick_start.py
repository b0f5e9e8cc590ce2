"""quick_start.sh reports what is missing with its remedy, creates .env once, and prints the address. A fake docker is on PATH."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.docgen.generate import ROOT

FAKE_DOCKER = """#!/usr/bin/env bash
echo "$*" >> "$HERE/called"
case "$*" in
  "info --format"*) echo '{"runc":{}}' ;;
  info) [ ! -e "$HERE/no-daemon" ] ;;
  "compose version") [ ! -e "$HERE/no-compose" ] ;;
  *build) [ ! -e "$HERE/no-build" ] ;;
  *ps*) echo "gateway running $(cat "$HERE/health")"; echo "prepare exited " ;;
  *port*) echo 127.0.0.1:8080 ;;
esac
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but the script and .env.example, and a folder of programs with a fake docker."""
    (tmp_path / "ops").mkdir()
    shutil.copy(ROOT / "ops/quick_start.sh", tmp_path / "ops")
    shutil.copy(ROOT / ".env.example", tmp_path)
    (tmp_path / "bin").mkdir()
    write_program(tmp_path, "docker", FAKE_DOCKER)
    (tmp_path / "health").write_text("healthy")
    return tmp_path


def write_program(checkout: Path, name: str, text: str) -> None:
    (checkout / "bin" / name).write_text(text)
    (checkout / "bin" / name).chmod(0o755)


@pytest.fixture
def run_quick_start(checkout: Path) -> Run:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        for name in ("bash", "sed", "dirname", "od", "tr", "cat", "mv", "grep", "sleep", "head", "env"):
            if not (checkout / "bin" / name).exists():
                (checkout / "bin" / name).symlink_to(str(shutil.which(name)))
        environment = {"PATH": str(checkout / "bin"), "HERE": str(checkout), "QUICK_START_PAUSE": "0", "LANG": os.environ.get("LANG", "C")}
        return subprocess.run(
            [str(checkout / "ops/quick_start.sh"), *arguments], env=environment, capture_output=True, text=True, timeout=30
        )

    return run


def docker_calls(checkout: Path) -> str:
    return (checkout / "called").read_text()


def test_quick_start_prints_url(checkout: Path, run_quick_start: Run) -> None:
    result = run_quick_start()
    assert result.returncode == 0, result.stderr
    assert "http://127.0.0.1:8080" in result.stdout
    assert "compose up -d" in docker_calls(checkout)
    created = (checkout / ".env").read_text()
    assert created.startswith("RABBITMQ_PASSWORD=")
    assert (checkout / ".env").stat().st_mode & 0o077 == 0
    assert run_quick_start().returncode == 0
    assert (checkout / ".env").read_text() == created


@pytest.mark.parametrize(
    ("failure", "problem", "remedy"),
    [("no-daemon", "docker does not answer", "systemctl"), ("no-compose", "no compose", "plugin"), ("no-build", "not be built", "disk")],
)
def test_docker_failure_is_reported_with_remedy(checkout: Path, run_quick_start: Run, failure: str, problem: str, remedy: str) -> None:
    (checkout / failure).touch()
    result = run_quick_start()
    assert result.returncode == 1
    assert problem in result.stderr
    assert remedy in result.stderr
    assert "compose up" not in docker_calls(checkout)


def test_missing_docker_is_reported(checkout: Path, run_quick_start: Run) -> None:
    (checkout / "bin/docker").unlink()
    assert "docker is not installed" in run_quick_start().stderr


def test_gpu_without_runtime_warns_and_uses_cpu(checkout: Path, run_quick_start: Run) -> None:
    write_program(checkout, "nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: H200'\n")
    assert "nvidia-container-toolkit" in run_quick_start().stderr
    assert run_quick_start("--cpu").returncode == 0
    assert "--profile gpu" not in docker_calls(checkout)


def test_env_file_without_password_is_rejected(checkout: Path, run_quick_start: Run) -> None:
    (checkout / ".env").write_text("RABBITMQ_PASSWORD=x\n")
    assert ".env does not set RABBITMQ_PUBLISHER_PASSWORD" in run_quick_start().stderr


def test_unhealthy_service_is_named_after_timeout(checkout: Path, run_quick_start: Run) -> None:
    (checkout / "health").write_text("starting")
    result = run_quick_start("--wait", "6")
    assert result.returncode == 1
    assert "gateway running starting" in result.stderr


def test_check_changes_nothing(checkout: Path, run_quick_start: Run) -> None:
    assert run_quick_start("--check").returncode == 0
    assert not (checkout / ".env").exists()
    assert "build" not in docker_calls(checkout)


def test_model_is_fetched_into_models_volume(checkout: Path, run_quick_start: Run) -> None:
    assert run_quick_start("--model", "org/name").returncode == 0
    assert "image models pull org/name --folder /models" in docker_calls(checkout)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_reports_no_issue() -> None:
    scripts = [*ROOT.glob("ops/*.sh"), *ROOT.glob("tests/compose/*.sh")]
    result = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
