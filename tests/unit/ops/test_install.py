"""RabbitMQ is found, or installed when allowed, or three ways out are named. The package managers here are stand-ins on PATH."""

import os
from pathlib import Path

import pytest

from ops.errors import SetupError
from ops.local import install
from ops.local.install import find_rabbitmq
from ops.settings import LocalSettings


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, with a shell and little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "touch", "chmod", "rm"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def settings(bare: Path, *, may_install: bool = True) -> LocalSettings:
    return LocalSettings(server_path=str(bare), may_install=may_install)


def test_a_server_that_is_there_is_taken(bare: Path) -> None:
    server = program(bare, "rabbitmq-server", "true")

    assert find_rabbitmq(settings(bare)) == server


def test_a_folder_of_ours_comes_before_path(bare: Path, tmp_path: Path) -> None:
    """On Debian the program on PATH is a wrapper for the system service."""
    program(bare, "rabbitmq-server", "exit 1")
    (tmp_path / "real").mkdir()
    real = program(tmp_path / "real", "rabbitmq-server", "true")

    assert find_rabbitmq(LocalSettings(server_path=str(tmp_path / "real"))) == real


def test_a_missing_server_is_installed_by_the_package_manager(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "as_root", list)
    program(bare, "dnf", f'echo "$@" > {bare}/asked; touch {bare}/rabbitmq-server; chmod 755 {bare}/rabbitmq-server')

    assert find_rabbitmq(settings(bare)) == bare / "rabbitmq-server"
    assert (bare / "asked").read_text() == "install -y -q rabbitmq-server\n"


def test_a_package_manager_that_fails_is_quoted_before_the_ways_out(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "as_root", list)
    program(bare, "dnf", "echo 'no space left' >&2; exit 3")

    with pytest.raises(SetupError, match=r"(?s)no space left.*Three ways out"):
        find_rabbitmq(settings(bare))


def test_nothing_is_installed_when_that_is_forbidden(bare: Path) -> None:
    program(bare, "dnf", f"touch {bare}/called")

    with pytest.raises(SetupError, match="Three ways out"):
        find_rabbitmq(settings(bare, may_install=False))
    assert not (bare / "called").exists()


def test_without_rights_no_password_is_asked_for(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo -n` that refuses means: not allowed."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(bare, "apt-get", f"touch {bare}/called")
    program(bare, "sudo", "exit 1")

    with pytest.raises(SetupError, match="Three ways out"):
        find_rabbitmq(settings(bare))
    assert not (bare / "called").exists()


def test_a_sudo_that_asks_nothing_is_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(bare, "dnf", "true")
    program(bare, "sudo", "true")

    assert install.way_to_install() == ["sudo", "-n", "sh", "-c", install.DNF]


def test_debian_starts_no_service_of_its_own_and_its_policy_is_put_back(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While the package is unpacked a policy forbids services; afterwards the policy is gone. The first try here wants an update."""
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(install, "as_root", list)
    monkeypatch.setattr(
        install, "APT", install.APT.replace("/usr/sbin/policy-rc.d", str(policy)).replace("/run/systemd/system", "/nowhere")
    )
    seen = f"cat {policy} >> {bare}/seen; /bin/cat {policy} >> {bare}/seen"
    make = f"touch {bare}/rabbitmq-server; chmod 755 {bare}/rabbitmq-server"
    program(
        bare,
        "apt-get",
        f'case "$1" in update) touch {bare}/updated ;; *) {seen}; test -e {bare}/updated || exit 100; {make} ;; esac',
    )

    assert find_rabbitmq(settings(bare)) == bare / "rabbitmq-server"
    assert "exit 101" in (bare / "seen").read_text()
    assert not policy.exists()
