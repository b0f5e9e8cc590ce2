"""OpenAI's error format: statuses, types and codes, by which its clients decide whether to retry."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError

from bus.amqp.request_reply import ReplyFault, ReplyTimeout
from contracts.fault import Fault
from gateway.openai.errors import INVALID_REQUEST_CODES, STATUS_BY_FAULT_CODE, openai_error, to_openai_problem
from gateway.problems import HttpProblem

IN_A_MODEL = {"type": "literal_error", "loc": ("body", "tool_choice", "ToolSelection", "type"), "msg": "no", "input": None}
INVALID = RequestValidationError([{"type": "missing", "loc": ("body", "messages", 0, "role"), "msg": "Field required", "input": None}])


FAULTS_OF_THE_WORKER = {"safety-checker-missing", "block-cache-unsupported"}
"""What the image step raises for a worker that is set up wrongly: a 500."""


FAULTS_OF_A_SETUP = {"database-missing", "engine-failed", "model-unnamed", "server-unnamed"} | {"moderation-empty", "too-many-pictures"}
"""A worker that is set up wrongly, or broken: a 500. The last two are of commands that `/v1` never sends."""
OTHER_MODULES = ("response_", "conversation_")
"""Of steps whose faults other modules of the gateway know."""


def fault(code: str, step: str = "text", cause: str = "cause") -> ReplyFault:
    return ReplyFault(Fault(code=code, message=cause, step=step))


def raised_codes(path: Path) -> Iterator[str]:
    """The code of each PermanentError of a module, written in place or as a constant of the module; not those that are passed on."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "PermanentError":
            code = node.args[0]
            if isinstance(code, ast.Name):
                yield getattr(importlib.import_module(".".join(path.with_suffix("").parts)), code.id)
            elif isinstance(code, ast.Constant):
                yield str(code.value)
            else:
                assert isinstance(code, ast.Attribute), f"{path}:{code.lineno}: neither a plain code nor that of another error"


def test_every_code_of_the_image_step_has_a_status() -> None:
    modules = [Path("actors/image.py"), *Path("actors/engines/diffusion").rglob("*.py")]
    codes = {code for module in modules for code in raised_codes(module)}
    assert {"control-unfit", "image-too-large", "prompt-too-long"} <= codes, "the codes are found"
    assert codes - INVALID_REQUEST_CODES - STATUS_BY_FAULT_CODE.keys() == FAULTS_OF_THE_WORKER


def written_codes(path: Path) -> Iterator[str]:
    """The codes that a module writes in place: of a PermanentError, and `code=` of any error."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            is_permanent = isinstance(node.func, ast.Name) and node.func.id == "PermanentError"
            values = [*(node.args[:1] if is_permanent else ()), *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            yield from (value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def test_every_code_of_text_embeddings_and_moderation_has_a_status() -> None:
    engines = [Path("actors/engines") / name for name in ("language", "remote", "vllm", "embedding", "moderation")]
    folders = [Path("actors") / name for name in ("llm", "embeddings", "moderation", "decoding")]
    modules = [Path("actors") / f"{step}.py" for step in ("text", "embed", "moderate")]
    modules += [path for folder in (*engines, *folders) for path in folder.rglob("*.py") if not path.name.startswith(OTHER_MODULES)]
    codes = {code for module in modules for code in written_codes(module)}
    assert {"decoder-unavailable", "prompt-too-long", "tool-call-missing", "dimensions-unsupported"} <= codes, "the codes are found"
    assert codes - INVALID_REQUEST_CODES - STATUS_BY_FAULT_CODE.keys() - FAULTS_OF_A_SETUP == set()


@pytest.mark.parametrize(
    ("error", "status", "error_type", "code", "param", "is_retryable"),
    [
        (INVALID, 400, "invalid_request_error", "invalid_request", "messages.0.role", False),
        (RequestValidationError([IN_A_MODEL]), 400, "invalid_request_error", "invalid_request", "tool_choice.type", False),
        (fault("prompt-too-long"), 400, "invalid_request_error", "context_length_exceeded", None, False),
        (fault("lora-unknown"), 400, "invalid_request_error", "lora_unknown", "model", False),
        (fault("tools-refused"), 400, "invalid_request_error", "tools_refused", "tools", False),
        (fault("parameter-unsupported", cause="json_schema: not beside tools"), 400, "invalid_request_error", "parameter_unsupported",
         "response_format", False),
        (fault("parameter-unsupported", cause="the server takes no top_logprobs, nor logprobs"), 400, "invalid_request_error",
         "parameter_unsupported", "top_logprobs", False),
        (fault("invalid-message", cause="messages[3].tool_call_id 'x' is the id of no tool call before it"), 400,
         "invalid_request_error", "invalid_message", "messages", False),
        (fault("invalid-message", cause="messages.3.name: String should have at most 256 characters"), 400,
         "invalid_request_error", "invalid_message", "messages", False),
        (fault("invalid-message", cause="system cannot be used with raw_prompt: a prompt is continued as it is"), 400,
         "invalid_request_error", "invalid_message", "prompt", False),
        (fault("invalid-message", cause="tool_name 'x' is none of tools: a"), 400, "invalid_request_error", "invalid_message",
         "tool_choice", False),
        (fault("decoder-unavailable"), 503, "server_error", "decoder_unavailable", None, True),
        (fault("invalid-message", cause="it says nothing"), 400, "invalid_request_error", "invalid_message", None, False),
        (fault("lora-invalid"), 400, "invalid_request_error", "lora_invalid", None, False),
        (fault("prompt-too-long", "image"), 400, "invalid_request_error", "context_length_exceeded", "prompt", False),
        (fault("lora-invalid", "image"), 400, "invalid_request_error", "lora_invalid", "loras", False),
        (fault("control-unfit", "image"), 400, "invalid_request_error", "control_unfit", "control", False),
        (fault("mask-empty"), 400, "invalid_request_error", "mask_empty", "mask", False),
        (fault("model-unknown"), 404, "invalid_request_error", "model_not_found", "model", False),
        (fault("prompt-too-long", "embed"), 400, "invalid_request_error", "context_length_exceeded", "input", False),
        (fault("dimensions-unsupported", "embed"), 400, "invalid_request_error", "dimensions_unsupported", "dimensions", False),
        (fault("embeddings-unconfigured", "embed"), 501, "server_error", "embeddings_unconfigured", None, False),
        (fault("cancelled"), 409, "invalid_request_error", "cancelled", None, False),
        (fault("document-too-large"), 413, "invalid_request_error", "document_too_large", None, False),
        (fault("server-away"), 503, "server_error", "server_away", None, True),
        (fault("prompt-unreadable"), 400, "invalid_request_error", "prompt_unreadable", None, False),
        (fault("json-incomplete"), 400, "invalid_request_error", "json_incomplete", None, False),
        (fault("json-unsupported"), 501, "server_error", "json_unsupported", None, False),
        (fault("bug"), 500, "server_error", "bug", None, False),
        (ReplyTimeout("j-1", 1), 504, "server_error", "no_reply_in_time", None, True),
    ],
)  # fmt: skip
def test_exception_becomes_openai_error(
    error: Any,
    status: int,
    error_type: str,
    code: str,
    param: str | None,
    is_retryable: bool,
) -> None:
    problem = to_openai_problem(error)
    body = openai_error(problem)["error"]
    assert (problem.status, body["type"], body["code"], body["param"]) == (status, error_type, code, param)
    assert ("Retry-After" in problem.headers) is is_retryable


@pytest.mark.parametrize(
    ("status", "title", "error_type", "code"),
    [
        (401, "Unauthorized", "invalid_request_error", "invalid_api_key"),
        (403, "tenant-foreign", "permission_error", "tenant_foreign"),
        (429, "too many requests", "rate_limit_error", "too_many_requests"),
        (413, "Content Too Large", "invalid_request_error", "content_too_large"),
        (503, "the bus is away", "server_error", "the_bus_is_away"),
    ],
)
def test_problem_has_openai_type_and_code(status: int, title: str, error_type: str, code: str) -> None:
    body = openai_error(HttpProblem(status, title, "detail"))["error"]
    assert (body["message"], body["type"], body["code"]) == ("detail", error_type, code)
