"""The engine arguments of vLLM in the worker: names and defaults of the CloudLLM server."""

import pytest

from actors.llm.settings import VllmSettings


def test_defaults_are_those_of_the_source_system() -> None:
    """A block size and a share of the GPU's memory are left to the engine, which knows whether it has a GPU."""
    assert VllmSettings().engine_args() == {"max_model_len": 2048, "max_num_seqs": 16, "tensor_parallel_size": 1}


def test_all_documented_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "MAX_MODEL_LEN": "4096",
        "MAX_NUM_SEQS": "8",
        "BLOCK_SIZE": "32",
        "GPU_MEMORY_UTILIZATION": "0.8",
        "TENSOR_PARALLEL_SIZE": "2",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"VLLM_{name}", value)
    assert VllmSettings().engine_args() == {name.lower(): float(value) for name, value in values.items()}
