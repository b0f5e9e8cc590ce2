"""When `atelier up` starts a local language model server."""

import sys
from pathlib import Path

import pytest

from ops.errors import SetupError
from ops.local.llm_server import LlmServer
from ops.up import needs_llm_server


def test_llm_server_is_needed_when_text_actor_has_none_configured() -> None:
    assert needs_llm_server(["text", "upload"], {})
    assert not needs_llm_server(["upload"], {})
    assert not needs_llm_server(["text"], {"VLLM_SERVER_URL": "http://vllm:8000/v1"})
    assert not needs_llm_server(["text"], {"TEXT_ENGINE": "vllm"})


def test_start_without_transformers_names_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SetupError, match=r"VLLM_SERVER_URL.*pip install"):
        LlmServer(tmp_path / "writer", tmp_path / "model").start()
