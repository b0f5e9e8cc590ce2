"""Quick start names what is missing and its cure, makes .env once, and says the address when all is healthy. Docker is played."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.documents.desk import ROOT

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
def here(tmp_path: Path) -> Path:
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
def quick(here: Path) -> Run:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        for name in ("bash", "sed", "dirname", "od", "tr", "cat", "mv", "grep", "sleep", "head", "env"):
            if not (here / "bin" / name).exists():
                (here / "bin" / name).symlink_to(str(shutil.which(name)))
        environment = {"PATH": str(here / "bin"), "HERE": str(here), "QUICK_START_PAUSE": "0", "LANG": os.environ.get("LANG", "C")}
        return subprocess.run([str(here / "ops/quick_start.sh"), *words], env=environment, capture_output=True, text=True, timeout=30)

    return run


def called(here: Path) -> str:
    return (here / "called").read_text()


def test_it_starts_and_says_the_address(here: Path, quick: Run) -> None:
    done = quick()
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:8080" in done.stdout
    assert "compose up -d" in called(here)
    made = (here / ".env").read_text()
    assert made.startswith("RABBITMQ_PASSWORD=")
    assert (here / ".env").stat().st_mode & 0o077 == 0
    assert quick().returncode == 0
    assert (here / ".env").read_text() == made


@pytest.mark.parametrize(
    ("mark", "said", "cure"),
    [("no-daemon", "docker does not answer", "systemctl"), ("no-compose", "no compose", "plugin"), ("no-build", "not be built", "disk")],
)
def test_what_is_missing_is_named_with_its_cure(here: Path, quick: Run, mark: str, said: str, cure: str) -> None:
    (here / mark).touch()
    done = quick()
    assert done.returncode == 1
    assert said in done.stderr
    assert cure in done.stderr
    assert "compose up" not in called(here)


def test_without_docker_it_says_so(here: Path, quick: Run) -> None:
    (here / "bin/docker").unlink()
    assert "docker is not here" in quick().stderr


def test_a_gpu_without_its_runtime_is_named_and_cpu_goes_on(here: Path, quick: Run) -> None:
    program(here, "nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: H200'\n")
    assert "nvidia-container-toolkit" in quick().stderr
    assert quick("--cpu").returncode == 0
    assert "--profile gpu" not in called(here)


def test_an_env_file_that_lacks_a_password_is_named(here: Path, quick: Run) -> None:
    (here / ".env").write_text("RABBITMQ_PASSWORD=x\n")
    assert ".env does not set POSTGRES_PASSWORD" in quick().stderr


def test_what_does_not_become_healthy_is_named(here: Path, quick: Run) -> None:
    (here / "health").write_text("starting")
    done = quick("--wait", "6")
    assert done.returncode == 1
    assert "gateway running starting" in done.stderr


def test_a_look_changes_nothing(here: Path, quick: Run) -> None:
    assert quick("--check").returncode == 0
    assert not (here / ".env").exists()
    assert "build" not in called(here)


def test_a_model_is_fetched_into_the_models_volume(here: Path, quick: Run) -> None:
    assert quick("--model", "org/name").returncode == 0
    assert "image models pull org/name --folder /models" in called(here)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [*ROOT.glob("ops/*.sh"), *ROOT.glob("tests/compose/*.sh")]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
