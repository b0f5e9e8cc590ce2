"""Who writes in the local workshop."""

import sys
from pathlib import Path

import pytest

from ops.errors import SetupError
from ops.local.writing_server import WritingServer
from ops.up import needs_a_writer


def test_a_writer_is_started_where_the_text_actor_runs_and_nobody_named_one() -> None:
    assert needs_a_writer(["text", "upload"], {})
    assert not needs_a_writer(["upload"], {})
    assert not needs_a_writer(["text"], {"VLLM_SERVER_URL": "http://vllm:8000/v1"})
    assert not needs_a_writer(["text"], {"TEXT_ENGINE": "vllm"})


def test_without_transformers_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SetupError, match=r"VLLM_SERVER_URL.*pip install"):
        WritingServer(tmp_path / "writer", tmp_path / "model").start()
