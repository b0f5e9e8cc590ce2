"""Programs of Debian's packages that tests run for real; installed when missing if ATELIER_MAY_INSTALL allows it."""

import shutil
import subprocess

import pytest

from ops.local.rabbitmq_install import root_prefix
from ops.settings import LocalSettings

APT = "apt-get -o DPkg::Lock::Timeout=300"
"""Two test processes may install at the same time: the second waits for the first."""

WITHOUT_SERVICE = """
set -e
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
"""
"""A shell prefix: the package is installed and its service is not started."""


def find_program(program: str, package: str) -> str:
    """The path of a program. Skips the test where it is missing and cannot be installed, with the command that would install it."""
    search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    path = shutil.which(program) or shutil.which(program, path=search)
    if path is None and LocalSettings().may_install and shutil.which("apt-get") and (prefix := root_prefix()) is not None:
        install = f"{APT} install -y -q --no-install-recommends {package}"
        script = f"{WITHOUT_SERVICE}{install} || {{ {APT} update -q && {install}; }}"
        subprocess.run(
            [*prefix, "sh", "-c", script],
            capture_output=True,
            timeout=200,
            check=False,
            env={"PATH": search, "DEBIAN_FRONTEND": "noninteractive"},
        )
        path = shutil.which(program, path=search)
    if path is None:
        pytest.skip(f"{program} is missing: apt-get install {package}")
    return path
