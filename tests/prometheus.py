"""promtool: the one on this machine, else the one of Debian's package, unpacked and not installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ops.local.install import as_root

KEPT = Path(__file__).parents[1] / ".local" / "prometheus"


def promtool() -> str:
    """Skips the test where there is neither promtool nor apt; the names in rules and dashboard are still checked without it."""
    found = shutil.which("promtool") or shutil.which("promtool", path=str(KEPT / "usr/bin"))
    return found or unpacked()


def unpacked() -> str:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("promtool is not here: brew install prometheus")
    KEPT.mkdir(parents=True, exist_ok=True)
    if download().returncode and (rights := as_root()) is not None:
        subprocess.run([*rights, "apt-get", "update", "-q"], capture_output=True, check=False)
        download()
    packages = list(KEPT.glob("prometheus_*.deb"))
    if not packages:
        pytest.skip("promtool is not here, and Debian's package cannot be had: apt-get install prometheus")
    subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(KEPT)], check=True, timeout=120)
    packages[0].unlink()
    return str(KEPT / "usr/bin/promtool")


def download() -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=KEPT, capture_output=True, check=False, timeout=300)
