"""RabbitMQ is found, or installed when allowed, or three ways out are named. The package managers here are stand-ins on PATH."""

import os
from pathlib import Path

import pytest

from ops.errors import SetupError
from ops.local import rabbitmq_install
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings


def write_program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, with a shell and little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "touch", "chmod", "rm"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def settings(bare: Path, *, may_install: bool = True) -> LocalSettings:
    return LocalSettings(server_path=str(bare), may_install=may_install)


def test_installed_server_is_used(empty_path: Path) -> None:
    server = write_program(empty_path, "rabbitmq-server", "true")

    assert find_or_install_rabbitmq(settings(empty_path)) == server


def test_configured_folder_precedes_path(empty_path: Path, tmp_path: Path) -> None:
    """On Debian the program on PATH is a wrapper for the system service."""
    write_program(empty_path, "rabbitmq-server", "exit 1")
    (tmp_path / "real").mkdir()
    real = write_program(tmp_path / "real", "rabbitmq-server", "true")

    assert find_or_install_rabbitmq(LocalSettings(server_path=str(tmp_path / "real"))) == real


def test_a_missing_server_is_installed_by_the_package_manager(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_install, "as_root", list)
    write_program(
        empty_path, "dnf", f'echo "$@" > {empty_path}/asked; touch {empty_path}/rabbitmq-server; chmod 755 {empty_path}/rabbitmq-server'
    )

    assert find_or_install_rabbitmq(settings(empty_path)) == empty_path / "rabbitmq-server"
    assert (empty_path / "asked").read_text() == "install -y -q rabbitmq-server\n"


def test_a_package_manager_that_fails_is_quoted_before_the_ways_out(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_install, "as_root", list)
    write_program(empty_path, "dnf", "echo 'no space left' >&2; exit 3")

    with pytest.raises(SetupError, match=r"(?s)no space left.*Three ways out"):
        find_or_install_rabbitmq(settings(empty_path))


def test_nothing_is_installed_when_that_is_forbidden(empty_path: Path) -> None:
    write_program(empty_path, "dnf", f"touch {empty_path}/called")

    with pytest.raises(SetupError, match="Three ways out"):
        find_or_install_rabbitmq(settings(empty_path, may_install=False))
    assert not (empty_path / "called").exists()


def test_unprivileged_user_is_not_prompted(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo -n` that refuses means: not allowed."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    write_program(empty_path, "apt-get", f"touch {empty_path}/called")
    write_program(empty_path, "sudo", "exit 1")

    with pytest.raises(SetupError, match="Three ways out"):
        find_or_install_rabbitmq(settings(empty_path))
    assert not (empty_path / "called").exists()


def test_passwordless_sudo_is_used(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    write_program(empty_path, "dnf", "true")
    write_program(empty_path, "sudo", "true")

    assert rabbitmq_install.install_command() == ["sudo", "-n", "sh", "-c", rabbitmq_install.DNF_COMMAND]


def test_debian_starts_no_service_of_its_own_and_its_policy_is_put_back(
    empty_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While the package is unpacked a policy forbids services; afterwards the policy is gone. The first try here wants an update."""
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(rabbitmq_install, "as_root", list)
    monkeypatch.setattr(
        rabbitmq_install,
        "APT",
        rabbitmq_install.APT_SCRIPT.replace("/usr/sbin/policy-rc.d", str(policy)).replace("/run/systemd/system", "/nowhere"),
    )
    seen = f"cat {policy} >> {empty_path}/seen; /bin/cat {policy} >> {empty_path}/seen"
    make = f"touch {empty_path}/rabbitmq-server; chmod 755 {empty_path}/rabbitmq-server"
    write_program(
        empty_path,
        "apt-get",
        f'case "$1" in update) touch {empty_path}/updated ;; *) {seen}; test -e {empty_path}/updated || exit 100; {make} ;; esac',
    )

    assert find_or_install_rabbitmq(settings(empty_path)) == empty_path / "rabbitmq-server"
    assert "exit 101" in (empty_path / "seen").read_text()
    assert not policy.exists()
