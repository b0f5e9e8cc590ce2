"""The local language model server of `atelier up`."""

import sys
from pathlib import Path

import pytest

from ops.errors import SetupError
from ops.local.llm_server import LlmServer


def test_start_without_transformers_names_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SetupError, match=r"VLLM_SERVER_URL.*pip install"):
        LlmServer(tmp_path / "writer", tmp_path / "model").start()
