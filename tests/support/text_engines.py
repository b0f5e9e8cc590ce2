"""Text engines for the conformance suite: how each is started, and what its worker is called with. All have a tiny model without vision."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from actors.engines.language.tiny_llama import write_tiny_llama
from tests.support.external_programs import MAX_MODEL_LEN, SERVER_ENVIRONMENT, find_vllm_python, vllm_server
from tests.support.transformers_server import transformers_server

ENGINES = ("embedded", "openai-compatible", "vllm-server", "vllm-in-process")
write_model = partial(write_tiny_llama, num_layers=8)
"""Slow enough to be interrupted in the middle of an answer."""


@dataclass(frozen=True)
class TextEngineUnderTest:
    """`name`: as the status reports it. `constrains`: it enforces JSON while decoding; the answers of a server that does not are refused.

    `samples`: it draws tokens; the server of transformers does so only for models whose own configuration says it.
    """

    name: str
    environment: dict[str, str]
    python: str = sys.executable
    constrains: bool = True
    samples: bool = True
    max_model_len: int | None = MAX_MODEL_LEN
    worker_environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "worker_environment", os.environ | self.environment)


@contextmanager
def text_engine(kind: str, folder: Path) -> Iterator[TextEngineUnderTest]:
    """Start the server, where the engine has one. Skips the test where vLLM is not installed."""
    limit = {"VLLM_MAX_MODEL_LEN": str(MAX_MODEL_LEN)}
    if kind == "openai-compatible":
        with transformers_server(folder, write_model) as url:
            yield TextEngineUnderTest(
                "openai",
                limit | {"VLLM_SERVER_URL": url, "TEXT_REPETITION_PENALTY": "1"},
                constrains=False,
                samples=False,
                max_model_len=None,
            )
        return
    if kind == "embedded":
        write_model(folder / "tiny")
        yield TextEngineUnderTest("embedded", limit | {"VLLM_MODEL": str(folder / "tiny"), "TEXT_THREADS": "1"})
        return
    python = str(find_vllm_python())
    write_model(folder / "tiny")
    if kind == "vllm-server":
        with vllm_server(folder / "tiny", folder / "log.txt") as server:
            yield TextEngineUnderTest("openai", {"VLLM_SERVER_URL": server.url})
        return
    vllm = {"TEXT_ENGINE": "vllm", "VLLM_MODEL": str(folder / "tiny"), "VLLM_ENFORCE_EAGER": "true", "VLLM_DTYPE": "bfloat16"}
    yield TextEngineUnderTest("vllm", SERVER_ENVIRONMENT | limit | vllm | {"VLLM_BLOCK_SIZE": "32"}, python)
