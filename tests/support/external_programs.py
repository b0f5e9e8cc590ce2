"""External programs for tests, which skip a test where they are missing: Node.js packages, promtool, vLLM."""

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.vllm_server import MAX_MODEL_LEN, SERVER_ENVIRONMENT, START_SECONDS, VLLM_PYTHON, VllmServer, vllm_server
from ops.local.rabbitmq_install import root_prefix

NODE_EXAMPLES = Path(__file__).parents[2] / "examples" / "node"


def install_node_packages() -> Path:
    """The folder of the Node.js examples with its packages installed. Skips the test without Node.js."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("Node.js 20 or newer and npm are needed to read the AsyncAPI document with AsyncAPI's own parser")
    lock, stamp = NODE_EXAMPLES / "package-lock.json", NODE_EXAMPLES / "node_modules" / ".package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        completed = subprocess.run(command, cwd=NODE_EXAMPLES, capture_output=True, text=True, timeout=110)
        assert completed.returncode == 0, completed.stderr
    return NODE_EXAMPLES


PROMTOOL_FOLDER = Path(__file__).parents[2] / ".local" / "prometheus"


def find_promtool() -> str:
    """The path of promtool, from Debian's package if need be. Skips the test without promtool and apt."""
    path = shutil.which("promtool") or shutil.which("promtool", path=str(PROMTOOL_FOLDER / "usr/bin"))
    return path or unpack_promtool()


def unpack_promtool() -> str:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("promtool is missing: brew install prometheus")
    PROMTOOL_FOLDER.mkdir(parents=True, exist_ok=True)
    if download_prometheus().returncode and (prefix := root_prefix()) is not None:
        subprocess.run([*prefix, "apt-get", "update", "-q"], capture_output=True, check=False)
        download_prometheus()
    packages = list(PROMTOOL_FOLDER.glob("prometheus_*.deb"))
    if not packages:
        pytest.skip("promtool is missing, and Debian's package cannot be downloaded: apt-get install prometheus")
    subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(PROMTOOL_FOLDER)], check=True, timeout=120)
    packages[0].unlink()
    return str(PROMTOOL_FOLDER / "usr/bin/promtool")


def download_prometheus() -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=PROMTOOL_FOLDER, capture_output=True, check=False, timeout=300)


__all__ = ["MAX_MODEL_LEN", "SERVER_ENVIRONMENT", "START_SECONDS", "VllmServer", "find_vllm_python", "vllm_server"]


def find_vllm_python() -> Path:
    if not VLLM_PYTHON.exists():
        pytest.skip("vLLM is missing: make venv-vllm")
    return VLLM_PYTHON
