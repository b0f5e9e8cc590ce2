"""Parsing of a server's context-length errors and of its metrics page."""

import pytest

from actors.engines.remote.openai_text import CONTEXT_LENGTH_PATTERN, PROMPT_LENGTH_PATTERN, parse_cache_config, parse_metrics, parse_number

VLLM = "This model's maximum context length is 512 tokens. However, your prompt contains at least 493 input tokens, which exceeds"
VLLM_WITH_OUTPUT = (
    "This model's maximum context length is 2,048 tokens. However, 512 output tokens are wanted and the prompt contains 1900 input tokens"
)
OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


@pytest.mark.parametrize(("message", "limit", "prompt"), [(VLLM, 512, 493), (VLLM_WITH_OUTPUT, 2048, 1900), (OPENAI, 8192, 9000)])
def test_context_limits_are_parsed_from_error(message: str, limit: int, prompt: int) -> None:
    match = CONTEXT_LENGTH_PATTERN.search(message)
    assert match
    assert (parse_number(match), parse_number(PROMPT_LENGTH_PATTERN.search(message, match.end()))) == (limit, prompt)


def test_metric_series_of_one_name_are_summed() -> None:
    page = '# HELP x y\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\nbroken nan%\n'
    assert parse_metrics(page)["vllm:num_requests_running"] == 5.0


def test_cache_settings_are_read_from_the_metrics_of_a_vllm() -> None:
    labels = 'block_size="16",cache_dtype="auto",gpu_memory_utilization="0.9",num_gpu_blocks="None",sliding_window="None"'
    page = f"# HELP vllm:cache_config_info x\nvllm:cache_config_info{{{labels}}} 1.0\n"
    assert parse_cache_config(page) == {"block_size": 16, "gpu_memory_utilization": 0.9, "cache_dtype": "auto"}
    assert parse_cache_config("up 1\n") == {}
