"""Where the RabbitMQ server is on this machine, and how it gets there when it is not.

The package manager is called only as root, with a `sudo` that asks no password, or as Homebrew; never when ATELIER_MAY_INSTALL=false.
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
No RabbitMQ server is on this machine. Three ways out:
  1. install it:       sudo apt-get install rabbitmq-server   (dnf install rabbitmq-server · brew install rabbitmq)
  2. use another one:  AMQP_URL=amqp://user:password@host:5672/
  3. use a container:  docker compose up"""

APT_SCRIPT = """
set -e
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    # Debian starts a service right after its installation; ours is started by nobody but us.
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
    """The `rabbitmq-server` script, installed first when it is missing and that is allowed. Raises SetupError with the ways out."""
    found = find_server_script(settings)
    if not found and settings.may_install and (command := install_command()):
        run_install(command)
        found = find_server_script(settings)
    if not found:
        raise SetupError(RABBITMQ_MISSING)
    return found


def find_server_script(settings: LocalSettings) -> Path | None:
    """Our folders first: what stands on PATH may be a wrapper for a system service."""
    script = shutil.which("rabbitmq-server", path=settings.server_path) or shutil.which("rabbitmq-server")
    return Path(script) if script else None


def install_command() -> list[str] | None:
    """The command for this machine, or None when we have no right to it."""
    for program, script in (("apt-get", APT_SCRIPT), ("dnf", DNF_COMMAND)):
        if shutil.which(program):
            rights = root_prefix()
            return None if rights is None else [*rights, "sh", "-c", script]
    return ["sh", "-c", BREW_COMMAND] if shutil.which("brew") else None


def root_prefix() -> list[str] | None:
    """What to put before a command: nothing for root, `sudo` when it asks no password, None when neither."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    allowed = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if allowed.returncode == 0 else None


def run_install(command: list[str]) -> None:
    """Raises SetupError with the last words of the package manager."""
    log.info("rabbitmq.installing", why="none was found; ATELIER_MAY_INSTALL=false forbids it")
    try:
        done = subprocess.run(
            command,
            env=inherited_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"The package manager was not done after {INSTALL_SECONDS:.0f} seconds.\n{RABBITMQ_MISSING}") from None
    if done.returncode:
        last_words = "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-6:])
        raise SetupError(f"RabbitMQ could not be installed:\n{last_words}\n{RABBITMQ_MISSING}")
    log.info("rabbitmq.installed")
