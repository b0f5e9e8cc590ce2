"""Node.js for the tests that look at us from another language: the packages of `examples/node`, installed once."""

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "node"


def ready() -> Path:
    """The folder, with its packages. Says aloud what is missing when there is no Node.js."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("Node.js 20 or newer and npm are needed to read the AsyncAPI document with AsyncAPI's own parser")
    lock, stamp = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stderr
    return FOLDER
