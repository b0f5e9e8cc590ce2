"""Finds the RabbitMQ server on this machine, or installs it.

The package manager is called only as root, with a `sudo` that asks for no password, or as Homebrew; never when ATELIER_MAY_INSTALL=false.
"""

import os
import shutil
import subprocess
from pathlib import Path

import structlog

from ops.errors import SetupError
from ops.settings import LocalSettings, inherited_environment

log = structlog.get_logger()

INSTALL_SECONDS = 600.0

RABBITMQ_MISSING = """\
No RabbitMQ server is installed on this machine. Choose one of:
  1. install it:       sudo apt-get install rabbitmq-server   (dnf install rabbitmq-server · brew install rabbitmq)
  2. use another one:  AMQP_URL=amqp://user:password@host:5672/
  3. use a container:  docker compose up"""

APT_SCRIPT = """
set -e
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    # Debian starts a service right after its installation; this policy forbids it.
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
install() { apt-get install -y -q --no-install-recommends rabbitmq-server; }
install || { apt-get update -q && install; }
if [ -d /run/systemd/system ]; then systemctl disable --now rabbitmq-server || true; fi
"""
DNF_COMMAND = "dnf install -y -q rabbitmq-server"
BREW_COMMAND = "brew install --quiet rabbitmq"


def find_or_install_rabbitmq(settings: LocalSettings) -> Path:
    """The `rabbitmq-server` script; it is installed when it is missing and that is allowed. Raises SetupError with the remedies."""
    script = find_server_script(settings)
    if not script and settings.may_install and (command := install_command()):
        run_install(command)
        script = find_server_script(settings)
    if not script:
        raise SetupError(RABBITMQ_MISSING)
    return script


def find_server_script(settings: LocalSettings) -> Path | None:
    """The configured folders come first: the script on PATH may be a wrapper for a system service."""
    script = shutil.which("rabbitmq-server", path=settings.server_path) or shutil.which("rabbitmq-server")
    return Path(script) if script else None


def install_command() -> list[str] | None:
    """The command for this machine; None without a package manager or without the right to use it."""
    for program, script in (("apt-get", APT_SCRIPT), ("dnf", DNF_COMMAND)):
        if shutil.which(program):
            prefix = root_prefix()
            return None if prefix is None else [*prefix, "sh", "-c", script]
    return ["sh", "-c", BREW_COMMAND] if shutil.which("brew") else None


def root_prefix() -> list[str] | None:
    """What precedes a command that runs as root: nothing for root, `sudo` when it asks for no password, None when neither applies."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    allowed = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if allowed.returncode == 0 else None


def run_install(command: list[str]) -> None:
    """Raises SetupError with the last lines of the package manager's output."""
    log.info("rabbitmq.installing", reason="not found; ATELIER_MAY_INSTALL=false prevents the installation")
    try:
        result = subprocess.run(
            command,
            env=inherited_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"The package manager did not finish within {INSTALL_SECONDS:.0f} seconds.\n{RABBITMQ_MISSING}") from None
    if result.returncode:
        tail = "\n".join(f"{result.stdout}\n{result.stderr}".strip().splitlines()[-6:])
        raise SetupError(f"RabbitMQ could not be installed:\n{tail}\n{RABBITMQ_MISSING}")
    log.info("rabbitmq.installed")
