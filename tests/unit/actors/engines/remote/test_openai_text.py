"""A refusal of a vLLM server is read for both numbers; a page of metrics for its values."""

import pytest

from actors.engines.remote.openai_text import CONTEXT_LENGTH_PATTERN, PROMPT_LENGTH_PATTERN, parse_metrics, parse_number

AT_ONCE = "This model's maximum context length is 512 tokens. However, your prompt contains at least 493 input tokens, which exceeds"
WITH_OUTPUT = (
    "This model's maximum context length is 2,048 tokens. However, 512 output tokens are wanted and the prompt contains 1900 input tokens"
)
OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


@pytest.mark.parametrize(("said", "limit", "prompt"), [(AT_ONCE, 512, 493), (WITH_OUTPUT, 2048, 1900), (OPENAI, 8192, 9000)])
def test_context_limits_are_parsed_from_error(said: str, limit: int, prompt: int) -> None:
    found = CONTEXT_LENGTH_PATTERN.search(said)
    assert found
    assert (parse_number(found), parse_number(PROMPT_LENGTH_PATTERN.search(said, found.end()))) == (limit, prompt)


def test_metric_series_of_one_name_are_summed() -> None:
    page = '# HELP x y\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\nbroken nan%\n'
    assert parse_metrics(page)["vllm:num_requests_running"] == 5.0
