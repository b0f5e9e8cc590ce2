"""The real vLLM on a CPU with a tiny Llama that is made here; whoever has no vLLM skips its tests."""

from pathlib import Path

import pytest

from ops.local.vllm import CONTEXT, PYTHON, QUIET, START_SECONDS, VllmServer, vllm_server

__all__ = ["CONTEXT", "QUIET", "START_SECONDS", "VllmServer", "vllm_python", "vllm_server"]


def vllm_python() -> Path:
    if not PYTHON.exists():
        pytest.skip("no vLLM here: make venv-vllm")
    return PYTHON
