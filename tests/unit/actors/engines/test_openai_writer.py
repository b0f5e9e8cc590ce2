"""A refusal of a vLLM server is read for both numbers; a page of metrics for its values."""

import pytest

from actors.engines.openai_writer import CONTEXT, PROMPT, number
from actors.engines.server_metrics import reading

AT_ONCE = "This model's maximum context length is 512 tokens. However, your prompt contains at least 493 input tokens, which exceeds"
WITH_OUTPUT = (
    "This model's maximum context length is 2,048 tokens. However, 512 output tokens are wanted and the prompt contains 1900 input tokens"
)
OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


@pytest.mark.parametrize(("said", "limit", "prompt"), [(AT_ONCE, 512, 493), (WITH_OUTPUT, 2048, 1900), (OPENAI, 8192, 9000)])
def test_both_numbers_of_a_refusal_are_read(said: str, limit: int, prompt: int) -> None:
    found = CONTEXT.search(said)
    assert found
    assert (number(found), number(PROMPT.search(said, found.end()))) == (limit, prompt)


def test_series_of_one_name_are_added_up() -> None:
    page = '# HELP x y\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\nbroken nan%\n'
    assert reading(page)["vllm:num_requests_running"] == 5.0
