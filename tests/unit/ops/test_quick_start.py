"""quick_start.sh and verify_system.sh report what is missing with its remedy, choose the language model, and change nothing else.

A fake docker is on PATH. What the documented deployment promises is in tests/conformance/test_vllm_compose.py.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from ops.docgen.generate import ROOT
from tests.support.fake_docker import FakeCheckout, make_fake_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> FakeCheckout:
    return make_fake_checkout(tmp_path)


def test_machine_without_gpu_gets_language_model_in_text_actor(checkout: FakeCheckout) -> None:
    result = checkout.run()
    assert checkout.compose_names == {"COMPOSE_FILE": "docker-compose.yml:ops/deploy/embedded-text.yml"}
    assert "inside the text actor" in result.stdout
    assert (ROOT / "ops/deploy/embedded-text.yml").is_file()


def test_configured_server_is_used(checkout: FakeCheckout) -> None:
    """Also after a run that added the language model inside the text actor."""
    checkout.run("--cpu")
    with (checkout.folder / ".env").open("a") as file:
        file.write("VLLM_SERVER_URL=http://model.example:8000/v1\nGRADIO_PORT=7999\n")
    result = checkout.run()
    assert result.returncode == 0, result.stderr
    assert "the server http://model.example:8000/v1" in result.stdout
    assert "Chat page:  http://127.0.0.1:7999/" in result.stdout
    assert checkout.compose_names == {}


def test_later_run_removes_what_an_earlier_one_added(checkout: FakeCheckout) -> None:
    embedded = {"COMPOSE_FILE": "docker-compose.yml:ops/deploy/embedded-text.yml"}
    checkout.run("--cpu")
    checkout.install_gpu()
    runs: list[tuple[tuple[str, ...], dict[str, str]]] = [
        ((), {"COMPOSE_PROFILES": "vllm"}),
        (("--images",), {"COMPOSE_PROFILES": "vllm,gpu"}),
    ]
    for arguments, expected in [*runs, (("--cpu",), embedded), (("--cpu",), embedded)]:
        result = checkout.run(*arguments)
        assert (result.returncode, checkout.compose_names) == (0, expected), result.stderr


def test_own_profiles_and_files_stay(checkout: FakeCheckout) -> None:
    checkout.run("--cpu")
    with (checkout.folder / ".env").open("a") as file:
        file.write("COMPOSE_PROFILES=vllm,gpu,metrics\nCOMPOSE_FILE=docker-compose.yml:own.yml\n")
    checkout.run("--cpu")
    assert checkout.compose_names == {
        "COMPOSE_PROFILES": "metrics",
        "COMPOSE_FILE": "docker-compose.yml:own.yml:ops/deploy/embedded-text.yml",
    }
    checkout.install_gpu()
    checkout.run()
    assert checkout.compose_names == {"COMPOSE_PROFILES": "metrics,vllm", "COMPOSE_FILE": "docker-compose.yml:own.yml"}


def test_wait_without_a_number_is_rejected(checkout: FakeCheckout) -> None:
    for value in ("abc", "-1", "08", "1e3"):
        result = checkout.run("--wait", value)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"quick_start: --wait needs a number of seconds, not {value}; see --help\n"


def test_wait_of_zero_seconds_asks_once(checkout: FakeCheckout) -> None:
    assert checkout.run("--wait", "0").returncode == 0
    (checkout.folder / "health").write_text("starting")
    result = checkout.run("--wait", "0")
    assert (result.returncode, "gateway running starting" in result.stderr) == (1, True)


@pytest.mark.parametrize(("failure", "problem"), [("dead-server", "doctor ran"), ("no-page", "--  chat page")])
def test_failed_verification_fails_quick_start(checkout: FakeCheckout, failure: str, problem: str) -> None:
    (checkout.folder / failure).touch()
    result = checkout.run()
    assert result.returncode == 1
    assert problem in result.stdout + result.stderr
    assert "a check failed" in result.stderr
    assert "Chat page:" not in result.stdout


def test_verify_without_containers_runs_doctor_of_this_machine(checkout: FakeCheckout) -> None:
    (checkout.folder / "no-containers").touch()
    assert "nor is atelier installed" in checkout.run(script="verify_system.sh").stderr
    checkout.write_program("atelier", '#!/usr/bin/env bash\necho "atelier $*"; exit 1\n')
    result = checkout.run("--json", "text", script="verify_system.sh")
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
def test_docker_failure_is_reported_with_remedy(checkout: FakeCheckout, failure: str, problem: str, remedy: str) -> None:
    (checkout.folder / failure).touch()
    result = checkout.run()
    assert result.returncode == 1
    assert problem in result.stderr
    assert remedy in result.stderr
    assert "compose up" not in "\n".join(checkout.docker_calls)


def test_missing_docker_is_reported(checkout: FakeCheckout) -> None:
    (checkout.folder / "bin/docker").unlink()
    assert "docker is not installed" in checkout.run().stderr


def test_gpu_without_runtime_is_reported(checkout: FakeCheckout) -> None:
    checkout.install_gpu(runtime=False)
    assert "nvidia-container-toolkit" in checkout.run().stderr
    assert checkout.run("--cpu").returncode == 0
    assert "COMPOSE_PROFILES" not in checkout.compose_names


def test_env_file_without_password_is_rejected(checkout: FakeCheckout) -> None:
    (checkout.folder / ".env").write_text("RABBITMQ_PASSWORD=x\n")
    assert ".env does not set RABBITMQ_PUBLISHER_PASSWORD" in checkout.run().stderr


def test_unhealthy_service_is_named_after_timeout(checkout: FakeCheckout) -> None:
    (checkout.folder / "health").write_text("starting")
    result = checkout.run("--wait", "6")
    assert result.returncode == 1
    assert "gateway running starting" in result.stderr


def test_check_changes_nothing(checkout: FakeCheckout) -> None:
    assert checkout.run("--check").returncode == 0
    assert not (checkout.folder / ".env").exists()
    assert "build" not in "\n".join(checkout.docker_calls)


def test_model_is_fetched_into_models_volume(checkout: FakeCheckout) -> None:
    assert "need a GPU" in checkout.run("--model", "org/name").stderr
    checkout.install_gpu()
    assert checkout.run("--model", "org/name").returncode == 0
    assert "image models pull org/name --folder /models" in "\n".join(checkout.docker_calls)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_reports_no_issue() -> None:
    scripts = [*ROOT.glob("ops/**/*.sh"), *ROOT.glob("tests/compose/*.sh")]
    result = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
