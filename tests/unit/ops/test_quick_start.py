"""quick_start.sh reports what is missing with its remedy, chooses the language model, creates .env once, verifies, and prints the address.

A fake docker is on PATH.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.docgen.generate import ROOT

FAKE_DOCKER = """#!/usr/bin/env bash
echo "$*" >> "$HERE/called"
case "$*" in
  "info --format"*) cat "$HERE/runtimes" ;;
  info) [ ! -e "$HERE/no-daemon" ] ;;
  "compose version") [ ! -e "$HERE/no-compose" ] ;;
  "compose pull"*) [ ! -e "$HERE/no-network" ] ;;
  *build) [ ! -e "$HERE/no-build" ] ;;
  "compose up"*) grep "^COMPOSE_" .env > "$HERE/compose"; true ;;
  "compose ps --services") [ -e "$HERE/no-containers" ] || echo gateway ;;
  "compose ps"*) echo "gateway running $(cat "$HERE/health")"; echo "prepare exited " ;;
  "compose exec"*) [ ! -e "$HERE/no-page" ] ;;
  *"operator doctor"*) echo "doctor ran"; [ ! -e "$HERE/dead-server" ] ;;
esac
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but the scripts and .env.example, and a folder of programs with a fake docker."""
    (tmp_path / "ops").mkdir()
    for script in ("quick_start.sh", "verify_system.sh"):
        shutil.copy(ROOT / "ops" / script, tmp_path / "ops")
    shutil.copy(ROOT / ".env.example", tmp_path)
    (tmp_path / "bin").mkdir()
    write_program(tmp_path, "docker", FAKE_DOCKER)
    (tmp_path / "health").write_text("healthy")
    (tmp_path / "runtimes").write_text('{"runc":{}}')
    return tmp_path


def write_program(checkout: Path, name: str, text: str) -> None:
    (checkout / "bin" / name).write_text(text)
    (checkout / "bin" / name).chmod(0o755)


@pytest.fixture
def run_quick_start(checkout: Path) -> Run:
    def run(*arguments: str, script: str = "quick_start.sh") -> "subprocess.CompletedProcess[str]":
        for name in ("bash", "sed", "dirname", "od", "tr", "cat", "mv", "grep", "sleep", "head", "tail", "env"):
            if not (checkout / "bin" / name).exists():
                (checkout / "bin" / name).symlink_to(str(shutil.which(name)))
        environment = {"PATH": str(checkout / "bin"), "HERE": str(checkout), "QUICK_START_PAUSE": "0", "LANG": os.environ.get("LANG", "C")}
        return subprocess.run([str(checkout / "ops" / script), *arguments], env=environment, capture_output=True, text=True, timeout=30)

    return run


def docker_calls(checkout: Path) -> str:
    return (checkout / "called").read_text()


def install_gpu(checkout: Path, *, runtime: bool = True) -> None:
    write_program(checkout, "nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: H200'\n")
    (checkout / "runtimes").write_text('{"nvidia":{}}' if runtime else '{"runc":{}}')


def compose_names(checkout: Path) -> dict[str, str]:
    """The names that Compose reads from .env, as they were when the services were started."""
    return dict(line.split("=", 1) for line in (checkout / "compose").read_text().splitlines())


def test_quick_start_creates_env_once_starts_verifies_and_prints_addresses(checkout: Path, run_quick_start: Run) -> None:
    result = run_quick_start()
    assert result.returncode == 0, result.stderr
    assert "Chat page:  http://127.0.0.1:7860/" in result.stdout
    assert "Gateway:    http://127.0.0.1:8080" in result.stdout
    assert "doctor ran" in result.stdout
    steps = [call for call in docker_calls(checkout).splitlines() if call.startswith("compose")]
    order = ["compose pull", "compose build", "compose up -d", "compose ps --all", "compose exec", "compose run"]
    positions = [next(index for index, call in enumerate(steps) if call.startswith(step)) for step in order]
    assert positions == sorted(positions)
    created = (checkout / ".env").read_text()
    assert created.startswith("RABBITMQ_PASSWORD=")
    assert (checkout / ".env").stat().st_mode & 0o077 == 0
    assert run_quick_start().returncode == 0
    assert (checkout / ".env").read_text() == created


def test_gpu_gets_language_model_server(checkout: Path, run_quick_start: Run) -> None:
    install_gpu(checkout)
    assert run_quick_start().returncode == 0
    assert compose_names(checkout) == {"COMPOSE_PROFILES": "vllm"}
    assert run_quick_start("--images").returncode == 0
    assert compose_names(checkout) == {"COMPOSE_PROFILES": "vllm,gpu"}
    assert run_quick_start().returncode == 0
    assert compose_names(checkout) == {"COMPOSE_PROFILES": "vllm,gpu"}, "what .env has is kept"


def test_machine_without_gpu_gets_language_model_in_text_actor(checkout: Path, run_quick_start: Run) -> None:
    result = run_quick_start()
    assert compose_names(checkout) == {"COMPOSE_FILE": "docker-compose.yml:ops/deploy/embedded-text.yml"}
    assert "inside the text actor" in result.stdout
    assert (ROOT / "ops/deploy/embedded-text.yml").is_file()


def test_configured_server_is_used(checkout: Path, run_quick_start: Run) -> None:
    run_quick_start()
    (checkout / ".env").write_text(re.sub("^COMPOSE.*\n", "", (checkout / ".env").read_text(), flags=re.MULTILINE))
    with (checkout / ".env").open("a") as file:
        file.write("VLLM_SERVER_URL=http://model.example:8000/v1\nGRADIO_PORT=7999\n")
    result = run_quick_start()
    assert result.returncode == 0, result.stderr
    assert "the server http://model.example:8000/v1" in result.stdout
    assert "Chat page:  http://127.0.0.1:7999/" in result.stdout
    assert compose_names(checkout) == {}


@pytest.mark.parametrize(("failure", "problem"), [("dead-server", "doctor ran"), ("no-page", "--  chat page")])
def test_failed_verification_fails_quick_start(checkout: Path, run_quick_start: Run, failure: str, problem: str) -> None:
    (checkout / failure).touch()
    result = run_quick_start()
    assert result.returncode == 1
    assert problem in result.stdout + result.stderr
    assert "a check failed" in result.stderr
    assert "Chat page:" not in result.stdout


def test_verify_checks_containers_page_and_services(checkout: Path, run_quick_start: Run) -> None:
    result = run_quick_start("--json", script="verify_system.sh")
    assert (result.returncode, result.stdout) == (0, "doctor ran\n"), "the checks of the containers do not break the JSON document"
    assert docker_calls(checkout).splitlines()[-1] == "compose run --rm --no-deps -T operator doctor --services --json"
    (checkout / "health").write_text("unhealthy")
    result = run_quick_start(script="verify_system.sh")
    assert result.returncode == 1
    assert "--  containers" in result.stderr


def test_verify_without_containers_runs_doctor_of_this_machine(checkout: Path, run_quick_start: Run) -> None:
    (checkout / "no-containers").touch()
    assert "nor is atelier installed" in run_quick_start(script="verify_system.sh").stderr
    write_program(checkout, "atelier", '#!/usr/bin/env bash\necho "atelier $*"; exit 1\n')
    result = run_quick_start("--json", "text", script="verify_system.sh")
    assert (result.returncode, result.stdout) == (1, "atelier doctor --json text\n")


@pytest.mark.parametrize(
    ("failure", "problem", "remedy"),
    [
        ("no-daemon", "docker does not answer", "systemctl"),
        ("no-compose", "no compose", "plugin"),
        ("no-build", "not be built", "disk"),
        ("no-network", "not be fetched", "network"),
    ],
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


def test_gpu_without_runtime_is_reported(checkout: Path, run_quick_start: Run) -> None:
    install_gpu(checkout, runtime=False)
    assert "nvidia-container-toolkit" in run_quick_start().stderr
    assert run_quick_start("--cpu").returncode == 0
    assert "COMPOSE_PROFILES" not in compose_names(checkout)


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
    assert "need a GPU" in run_quick_start("--model", "org/name").stderr
    install_gpu(checkout)
    assert run_quick_start("--model", "org/name").returncode == 0
    assert "image models pull org/name --folder /models" in docker_calls(checkout)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_reports_no_issue() -> None:
    scripts = [*ROOT.glob("ops/**/*.sh"), *ROOT.glob("tests/compose/*.sh")]
    result = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
