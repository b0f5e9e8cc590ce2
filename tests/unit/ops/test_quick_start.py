"""Quick start names what is missing and its cure, makes .env once, and says the address when all is healthy. Docker is played."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.docgen.generate import ROOT

DOCKER = """#!/usr/bin/env bash
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
    """A checkout with the script alone, and a folder of programs with docker in it."""
    (tmp_path / "ops").mkdir()
    shutil.copy(ROOT / "ops/quick_start.sh", tmp_path / "ops")
    shutil.copy(ROOT / ".env.example", tmp_path)
    (tmp_path / "bin").mkdir()
    program(tmp_path, "docker", DOCKER)
    (tmp_path / "health").write_text("healthy")
    return tmp_path


def program(here: Path, name: str, text: str) -> None:
    (here / "bin" / name).write_text(text)
    (here / "bin" / name).chmod(0o755)


@pytest.fixture
def run_quick_start(checkout: Path) -> Run:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        for name in ("bash", "sed", "dirname", "od", "tr", "cat", "mv", "grep", "sleep", "head", "env"):
            if not (checkout / "bin" / name).exists():
                (checkout / "bin" / name).symlink_to(str(shutil.which(name)))
        environment = {"PATH": str(checkout / "bin"), "HERE": str(checkout), "QUICK_START_PAUSE": "0", "LANG": os.environ.get("LANG", "C")}
        return subprocess.run([str(checkout / "ops/quick_start.sh"), *words], env=environment, capture_output=True, text=True, timeout=30)

    return run


def docker_calls(here: Path) -> str:
    return (here / "called").read_text()


def test_quick_start_prints_url(checkout: Path, run_quick_start: Run) -> None:
    done = run_quick_start()
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:8080" in done.stdout
    assert "compose up -d" in docker_calls(checkout)
    made = (checkout / ".env").read_text()
    assert made.startswith("RABBITMQ_PASSWORD=")
    assert (checkout / ".env").stat().st_mode & 0o077 == 0
    assert run_quick_start().returncode == 0
    assert (checkout / ".env").read_text() == made


@pytest.mark.parametrize(
    ("mark", "said", "cure"),
    [("no-daemon", "docker does not answer", "systemctl"), ("no-compose", "no compose", "plugin"), ("no-build", "not be built", "disk")],
)
def test_what_is_missing_is_named_with_its_cure(checkout: Path, run_quick_start: Run, mark: str, said: str, cure: str) -> None:
    (checkout / mark).touch()
    done = run_quick_start()
    assert done.returncode == 1
    assert said in done.stderr
    assert cure in done.stderr
    assert "compose up" not in docker_calls(checkout)


def test_missing_docker_is_reported(checkout: Path, run_quick_start: Run) -> None:
    (checkout / "bin/docker").unlink()
    assert "docker is not here" in run_quick_start().stderr


def test_gpu_without_runtime_warns_and_uses_cpu(checkout: Path, run_quick_start: Run) -> None:
    program(checkout, "nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: H200'\n")
    assert "nvidia-container-toolkit" in run_quick_start().stderr
    assert run_quick_start("--cpu").returncode == 0
    assert "--profile gpu" not in docker_calls(checkout)


def test_an_env_file_that_lacks_a_password_is_named(checkout: Path, run_quick_start: Run) -> None:
    (checkout / ".env").write_text("RABBITMQ_PASSWORD=x\n")
    assert ".env does not set POSTGRES_PASSWORD" in run_quick_start().stderr


def test_what_does_not_become_healthy_is_named(checkout: Path, run_quick_start: Run) -> None:
    (checkout / "health").write_text("starting")
    done = run_quick_start("--wait", "6")
    assert done.returncode == 1
    assert "gateway running starting" in done.stderr


def test_dry_run_changes_nothing(checkout: Path, run_quick_start: Run) -> None:
    assert run_quick_start("--check").returncode == 0
    assert not (checkout / ".env").exists()
    assert "build" not in docker_calls(checkout)


def test_a_model_is_fetched_into_the_models_volume(checkout: Path, run_quick_start: Run) -> None:
    assert run_quick_start("--model", "org/name").returncode == 0
    assert "image models pull org/name --folder /models" in docker_calls(checkout)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_reports_no_issue() -> None:
    scripts = [*ROOT.glob("ops/*.sh"), *ROOT.glob("tests/compose/*.sh")]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
