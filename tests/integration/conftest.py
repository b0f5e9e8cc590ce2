"""Fixture of the integration tests: a vLLM server."""

from collections.abc import Iterator

import pytest

from actors.engines.language.tiny_llama import write_tiny_llama
from tests.support.external_programs import VllmServer, find_vllm_python, vllm_server


@pytest.fixture(scope="session")
def running_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The real vLLM with a tiny Llama of random weights, slow enough to be interrupted in the middle of a generation."""
    find_vllm_python()
    folder = tmp_path_factory.mktemp("vllm")
    write_tiny_llama(folder / "tiny-llama", num_layers=8)
    with vllm_server(folder / "tiny-llama", folder / "log.txt") as server:
        yield server
