"""Text engines for the conformance suite: how each is started, and what its worker is called with. All have a tiny model without vision,
and all but the server of transformers have the LoRA adapter `loud`.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from actors.engines.language.tiny_llama import write_tiny_llama
from tests.support.external_programs import SERVER_ENVIRONMENT, find_vllm_python, vllm_server
from tests.support.lora_files import write_tiny_llama_lora
from tests.support.transformers_server import transformers_server

ENGINES = ("embedded", "openai-compatible", "vllm-server", "vllm-in-process")
HOSTILE_SCHEMAS: dict[str, dict[str, Any]] = {
    "keyword that cannot be enforced": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "another document": {"$ref": "http://example.com/schema.json"},
    "no type": {"type": "nonsense"},
    "nested too deeply": json.loads('{"type": "array", "items": ' * 40 + "{}" + "}" * 40),
    "too large": {"type": "string", "description": "x" * 70_000},
    "endless": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000},
    "broken pattern": {"type": "string", "pattern": "("},
}
CONTEXT = 1536
"""Tokens of prompt and answer together: the tokens of these models are bytes, and tools are described in some hundred."""
MAX_ANSWER = 1000
write_model, write_adapter = partial(write_tiny_llama, num_layers=8), partial(write_tiny_llama_lora, num_layers=8)
"""Slow enough to be interrupted in the middle of an answer."""
SERVER_ARGUMENTS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details")
"""What a vLLM server needs to find calls that were not required, and to report which tokens of a prompt it had in its cache."""


@dataclass(frozen=True)
class TextEngineUnderTest:
    """`name`: as the status reports it. `constrains`: it enforces JSON and tool calls while decoding, has a prefix cache, and reports log
    probabilities; what a server that does none of it cannot do is refused.

    `samples`: it draws tokens; the server of transformers does so only for models whose own configuration says it.
    """

    name: str
    environment: dict[str, str]
    python: str = sys.executable
    constrains: bool = True
    samples: bool = True
    max_model_len: int | None = CONTEXT
    worker_environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "worker_environment", os.environ | self.environment)


@contextmanager
def text_engine(kind: str, folder: Path) -> Iterator[TextEngineUnderTest]:
    """Start the server, where the engine has one. Skips the test where vLLM is not installed."""
    limit = {"VLLM_MAX_MODEL_LEN": str(CONTEXT), "MAX_TOKENS_CAP": str(MAX_ANSWER)}
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
    python = sys.executable if kind == "embedded" else str(find_vllm_python())
    write_model(folder / "tiny")
    write_adapter(folder / "loud")
    if kind == "vllm-server":
        adapter = ("--enable-lora", "--max-loras", "2", "--lora-modules", f"loud={folder / 'loud'}")
        arguments = (*SERVER_ARGUMENTS, *adapter)
        with vllm_server(folder / "tiny", folder / "log.txt", max_model_len=CONTEXT, arguments=arguments) as server:
            yield TextEngineUnderTest("openai", limit | {"VLLM_SERVER_URL": server.url})
        return
    local = limit | {"VLLM_MODEL": str(folder / "tiny"), "TEXT_LORAS": json.dumps({"loud": str(folder / "loud")})}
    if kind == "embedded":
        yield TextEngineUnderTest("embedded", local | {"TEXT_THREADS": "1"})
        return
    vllm = {"TEXT_ENGINE": "vllm", "VLLM_ENFORCE_EAGER": "true", "VLLM_DTYPE": "bfloat16", "VLLM_BLOCK_SIZE": "32"}
    yield TextEngineUnderTest("vllm", SERVER_ENVIRONMENT | local | vllm, python)
