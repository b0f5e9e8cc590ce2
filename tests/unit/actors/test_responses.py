"""What a response says of parameters that the model's server did not take."""

import pytest

from actors.responses import was_requested
from contracts.responses import ResponseRequest


@pytest.mark.parametrize(
    ("name", "given", "missing"),
    [
        ("temperature", {}, False),
        ("temperature", {"temperature": 0.2}, True),
        ("top_p", {"top_p": 1}, False),
        ("top_p", {"top_p": 0.5}, True),
        ("parallel_tool_calls", {}, False),
        ("parallel_tool_calls", {"parallel_tool_calls": False}, True),
        ("seed", {}, False),
        ("reasoning_effort", {"effort": "low"}, True),
    ],
)
def test_only_what_the_client_asked_for_is_missed(name: str, given: dict[str, object], missing: bool) -> None:
    request = ResponseRequest.model_validate({"model": "text"} | given)
    assert was_requested(name, ResponseRequest.model_validate(request.model_dump(mode="json"))) is missing
