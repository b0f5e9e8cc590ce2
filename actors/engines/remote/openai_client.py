"""What the engines behind OpenAI-compatible servers share: the HTTP client, requests and their errors, the choice of the model."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from actors.engines.language.requests import FinishReason
from bus.errors import PermanentError, TemporaryError
from bus.net.ssrf import describe_http_error

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})

log = structlog.get_logger()


@asynccontextmanager
async def open_client(
    base_url: str | None, api_key: SecretStr | None, timeout_seconds: float, limits: httpx.Limits, *, setting: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client; no request is sent yet. Raises PermanentError("server-unnamed") without `base_url`, which comes from `setting`."""
    if not base_url:
        raise PermanentError("server-unnamed", f"the engine `openai` needs {setting}, such as http://localhost:8000/v1")
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
    timeout = httpx.Timeout(timeout_seconds, connect=10)
    async with httpx.AsyncClient(base_url=f"{base_url.rstrip('/')}/", headers=headers, timeout=timeout, limits=limits) as http:
        yield http


def connection_error(http: httpx.AsyncClient, error: Exception) -> TemporaryError:
    """Without the text of an error that may quote the request's headers, which contain the API key."""
    address = http.base_url.copy_with(userinfo=b"")
    return TemporaryError(f"the model server at {address} did not answer: {describe_http_error(error)}", code="server-away")


@contextmanager
def parsing_answer() -> Iterator[None]:
    """Raises TemporaryError("server-failed") where an answer with status 200 is not what OpenAI's API returns, such as a proxy's page."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"the model server's answer is not one of OpenAI's API: {type(error).__name__}"
        raise TemporaryError(message, code="server-failed") from error


def status_error(response: httpx.Response) -> PermanentError | TemporaryError | None:
    """The error of a status other than 200. The response must have been read."""
    status, text = response.status_code, response.text[:500]
    if status == 200:
        return None
    if status >= 500 or status in RETRYABLE_STATUSES:
        retry_after = response.headers.get("Retry-After", "")
        delay = float(retry_after) if retry_after.isdigit() else None
        return TemporaryError(f"the model server answered {status}: {text}", code="server-failed", delay=delay)
    return PermanentError("server-refused", f"the model server answered {status}: {text}")


def choose_model(requested: str | None, served: list[str]) -> str:
    """`requested` if the server has it, else the first that it serves. Raises TemporaryError when it serves none."""
    if not served:
        raise TemporaryError("the server serves no model yet", code="server-not-ready")
    if requested in served:
        return str(requested)
    if requested:
        log.warning("server.other_model", requested=requested, used=served[0])
    return served[0]


def response_format(schema: str) -> dict[str, Any]:
    """`response_format` of a request whose answer must satisfy `schema`, which is JSON."""
    return {"type": "json_schema", "json_schema": {"name": "verdict", "schema": json.loads(schema), "strict": True}}


def finish_reason(choice: dict[str, Any]) -> FinishReason:
    return "length" if choice.get("finish_reason") == "length" else "stop"
