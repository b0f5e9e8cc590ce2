"""RabbitMQ is found, or installed where that is allowed, or three remedies are named. The package managers are fakes on PATH."""

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
    """The only folder of PATH, with a shell and a few tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "touch", "chmod", "rm"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def settings(path: Path, *, may_install: bool = True) -> LocalSettings:
    return LocalSettings(server_path=str(path), may_install=may_install)


def test_installed_server_is_used(empty_path: Path) -> None:
    server = write_program(empty_path, "rabbitmq-server", "true")

    assert find_or_install_rabbitmq(settings(empty_path)) == server


def test_configured_folder_precedes_path(empty_path: Path, tmp_path: Path) -> None:
    """On Debian the script on PATH is a wrapper for the system service."""
    write_program(empty_path, "rabbitmq-server", "exit 1")
    (tmp_path / "real").mkdir()
    real = write_program(tmp_path / "real", "rabbitmq-server", "true")

    assert find_or_install_rabbitmq(LocalSettings(server_path=str(tmp_path / "real"))) == real


def test_missing_server_is_installed_with_package_manager(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_install, "root_prefix", list)
    write_program(
        empty_path, "dnf", f'echo "$@" > {empty_path}/arguments; touch {empty_path}/rabbitmq-server; chmod 755 {empty_path}/rabbitmq-server'
    )

    assert find_or_install_rabbitmq(settings(empty_path)) == empty_path / "rabbitmq-server"
    assert (empty_path / "arguments").read_text() == "install -y -q rabbitmq-server\n"


def test_failed_installation_quotes_package_manager_and_remedies(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_install, "root_prefix", list)
    write_program(empty_path, "dnf", "echo 'no space left' >&2; exit 3")

    with pytest.raises(SetupError, match=r"(?s)no space left.*Choose one of"):
        find_or_install_rabbitmq(settings(empty_path))


def test_nothing_is_installed_when_installation_is_forbidden(empty_path: Path) -> None:
    write_program(empty_path, "dnf", f"touch {empty_path}/called")

    with pytest.raises(SetupError, match="Choose one of"):
        find_or_install_rabbitmq(settings(empty_path, may_install=False))
    assert not (empty_path / "called").exists()


def test_unprivileged_user_is_not_prompted(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing `sudo -n` means that a password would be asked for."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    write_program(empty_path, "apt-get", f"touch {empty_path}/called")
    write_program(empty_path, "sudo", "exit 1")

    with pytest.raises(SetupError, match="Choose one of"):
        find_or_install_rabbitmq(settings(empty_path))
    assert not (empty_path / "called").exists()


def test_passwordless_sudo_is_used(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    write_program(empty_path, "dnf", "true")
    write_program(empty_path, "sudo", "true")

    assert rabbitmq_install.install_command() == ["sudo", "-n", "sh", "-c", rabbitmq_install.DNF_COMMAND]


def test_apt_installation_starts_no_service_and_removes_its_policy(
    empty_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A policy forbids services during the installation and is removed afterwards. The first attempt fails until `apt-get update`."""
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(rabbitmq_install, "root_prefix", list)
    monkeypatch.setattr(
        rabbitmq_install,
        "APT_SCRIPT",
        rabbitmq_install.APT_SCRIPT.replace("/usr/sbin/policy-rc.d", str(policy)).replace("/run/systemd/system", "/nowhere"),
    )
    record = f"cat {policy} >> {empty_path}/policies; /bin/cat {policy} >> {empty_path}/policies"
    install = f"touch {empty_path}/rabbitmq-server; chmod 755 {empty_path}/rabbitmq-server"
    write_program(
        empty_path,
        "apt-get",
        f'case "$1" in update) touch {empty_path}/updated ;; *) {record}; test -e {empty_path}/updated || exit 100; {install} ;; esac',
    )

    assert find_or_install_rabbitmq(settings(empty_path)) == empty_path / "rabbitmq-server"
    assert "exit 101" in (empty_path / "policies").read_text()
    assert not policy.exists()
