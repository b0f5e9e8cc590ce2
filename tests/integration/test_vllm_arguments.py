"""The arguments that the container vllm-server passes are known to the real vLLM."""

import json
import subprocess
from pathlib import Path

import pytest

from actors.llm.settings import VllmSettings
from tests.support.compose_file import run_vllm_server
from tests.support.external_programs import find_vllm_python

PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
arguments, unknown = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_known_args(sys.argv[1:])
assert unknown == ["--host", "0.0.0.0", "--port", "8000"], unknown  # of the HTTP server
print("parsed " + json.dumps({name: str(value) for name, value in vars(arguments).items()}))
"""
VALUES = {
    "max_model_len": "2048", "max_num_seqs": "16", "block_size": "16", "gpu_memory_utilization": "0.75", "tensor_parallel_size": "2",
    "dtype": "bfloat16", "quantization": "awq", "kv_cache_dtype": "fp8", "enforce_eager": "True", "trust_remote_code": "True",
}  # fmt: skip


def parse(*arguments: str) -> dict[str, str]:
    command = [str(find_vllm_python()), "-c", PARSE, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert output.returncode == 0, output.stderr[-2000:]
    return dict(json.loads(output.stdout.rpartition("parsed ")[2]))


@pytest.mark.timeout(500)
def test_server_of_compose_file_is_started_with_known_arguments(tmp_path: Path) -> None:
    assert set(VALUES) == set(VllmSettings.model_fields)
    command, model, *arguments = run_vllm_server(tmp_path, **{f"VLLM_{name.upper()}": value for name, value in VALUES.items()})
    assert (command, model) == ("serve", "Qwen/Qwen2.5-Coder-7B-Instruct")
    parsed = parse("--model", model, *arguments)
    assert {name: parsed[name] for name in VALUES} == VALUES
    assert (parsed["model"], parsed["enable_prefix_caching"], parsed["enable_log_requests"]) == (model, "True", "False")
