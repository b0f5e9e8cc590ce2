"""What the engines behind OpenAI-compatible servers share: the HTTP client, requests, and the errors of their answers."""

import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from pydantic import SecretStr

from actors.engines.remote.answers import first_choices, repair_surrogates
from bus.errors import PermanentError, TemporaryError
from bus.masking import mask_text
from bus.net.ssrf import describe_http_error

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
NOT_IMPLEMENTED = 501
NO_ROUTE_STATUSES = frozenset({404, 405})
TRANSFER_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
CHAT_ROUTE = "/chat/completions"
FILTERED = re.compile(r"content_filter|content_policy_violation|ResponsibleAIPolicyViolation", re.IGNORECASE)
"""Of the error of a server that filters prompts."""
QUOTED_CHARS = 500
MAX_ANSWER_BYTES, MAX_ERROR_BYTES = 16 << 20, 64 << 10
"""Of an answer that is no stream, and of an error, whose end is not read."""
ABOUT_THE_REQUEST = re.compile(r"model|parameter|support", re.IGNORECASE)
"""What a status of NO_ROUTE_STATUSES is about where the address is right."""


class ServerRefusal(PermanentError):
    """The server refuses the request with `status`. `answer`: the body of its answer, cut."""

    def __init__(self, status: int, answer: str) -> None:
        hint = "; does its address end with /v1?" if status in NO_ROUTE_STATUSES and not ABOUT_THE_REQUEST.search(answer) else ""
        super().__init__("server-refused", f"the model server answered {status}: {answer[:QUOTED_CHARS]}{hint}")
        self.status, self.answer = status, answer[:10_000]

    def __reduce__(self) -> tuple[type[PermanentError], tuple[object, ...]]:
        return ServerRefusal, (self.status, self.answer)


@asynccontextmanager
async def open_client(
    base_url: str | None, api_key: SecretStr | None, timeout_seconds: float, limits: httpx.Limits, *, setting: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client; no request is sent yet. An address that ends with the route of chats is taken without it.

    Raises PermanentError("server-unnamed") without `base_url`, which comes from `setting`.
    """
    if not base_url:
        raise PermanentError("server-unnamed", f"the engine `openai` needs {setting}, such as http://localhost:8000/v1")
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
    timeout = httpx.Timeout(timeout_seconds, connect=10)
    async with httpx.AsyncClient(
        base_url=f"{base_url.rstrip('/').removesuffix(CHAT_ROUTE)}/", headers=headers, timeout=timeout, limits=limits
    ) as http:
        yield http


def connection_error(http: httpx.AsyncClient, error: Exception) -> TemporaryError:
    """Without the text of an error that may quote the request's headers, which contain the API key."""
    address = http.base_url.copy_with(userinfo=b"")
    return TemporaryError(f"the model server at {address} did not answer: {describe_http_error(error)}", code="server-away")


async def send_bounded(http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """The response, with its body. Raises TemporaryError without an answer, and for one that is too large."""
    try:
        response = await http.send(request, stream=True)
        try:
            return await read_bounded(response)
        finally:
            await response.aclose()
    except httpx.HTTPError as error:
        raise connection_error(http, error) from error


async def read_bounded(response: httpx.Response) -> httpx.Response:
    """The response of a stream with its body, decoded; an error's is cut. Raises httpx.HTTPError, TemporaryError for a larger answer."""
    limit = MAX_ANSWER_BYTES if response.status_code == 200 else MAX_ERROR_BYTES
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > limit:
            break
    if len(body) > limit and response.status_code == 200:
        raise TemporaryError(f"the model server's answer has more than {limit} bytes", code="server-failed")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in TRANSFER_HEADERS]
    return httpx.Response(response.status_code, headers=headers, content=bytes(body[:limit]), request=response.request)


@contextmanager
def parsing_answer(text: str = "") -> Iterator[None]:
    """Raises TemporaryError("server-failed") where an answer with status 200 is not what OpenAI's API returns, such as a proxy's page."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        page = (
            "; it is a page of HTML: does the address of the server end with /v1?" if text.lstrip("\ufeff \r\n\t").startswith("<") else ""
        )
        message = f"the model server's answer is not one of OpenAI's API: {type(error).__name__}{page}"
        raise TemporaryError(message, code="server-failed") from error


def parse_completion(response: httpx.Response) -> dict[str, Any]:
    """The object in an answer with status 200. Raises the error that it reports, and TemporaryError("server-failed") for another answer."""
    with parsing_answer(response.text[:100]):
        try:
            body = to_object(json.loads(response.content))
        except UnicodeDecodeError:
            body = to_object(json.loads(response.text))  # in the encoding that the answer names
    if error := reported_error(body, bare_message=True):
        raise error
    return body


def to_object(value: Any) -> dict[str, Any]:
    """The object, also out of a list that has nothing else, as Gemini's errors. Raises TypeError, ValueError for another value."""
    return dict(value[0] if isinstance(value, list) and len(value) == 1 else value)


def reported_error(body: dict[str, Any], *, bare_message: bool = False) -> PermanentError | TemporaryError | None:
    """The error in an answer with status 200 or in an event, also beside choices or in the first one; None for one without.

    `bare_message`: a `message` alone is an error; in an event it may be about the request's progress.
    """
    error = _error_member(body) or next(filter(None, map(_error_member, _choices(body))), None)
    if error is None and not body.get("choices"):
        named = "error" in (body.get("object"), body.get("type"), body.get("status"))
        about = bare_message or body.get("code") or _status_of(body, "status")
        bare = isinstance(body.get("detail"), str) or (isinstance(body.get("message"), str) and about)
        error = body if named or (bare and "choices" not in body) else None
    return error_of(error) if error is not None else None


def _choices(body: dict[str, Any]) -> list[dict[str, Any]]:
    with suppress(TypeError):  # what is no list is reported where it is read
        return list(first_choices(body))
    return []


def _error_member(body: dict[str, Any]) -> Any:
    """None for none, and for one that says nothing."""
    error = body.get("error")
    return error if (any(error.values()) if isinstance(error, dict) else error) else None


def error_of(error: Any) -> PermanentError | TemporaryError:
    """The error that a server reports in words, or in an object with `code` or `status`."""
    text = mask_text(repair_surrogates(json.dumps(error, ensure_ascii=False) if isinstance(error, dict) else str(error)))
    status = next((value for name in ("code", "status") if (value := _status_of(error, name))), 0)
    if 400 <= status < 500 and status not in RETRYABLE_STATUSES:
        return refusal(status, text)
    return TemporaryError(f"the model server failed: {text[:QUOTED_CHARS]}", code="server-failed")


def _status_of(error: Any, name: str) -> int:
    value = error.get(name) if isinstance(error, dict) else None
    return int(value) if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)) else 0


def status_error(response: httpx.Response) -> PermanentError | TemporaryError | None:
    """The error of a status other than 200. The response must have been read."""
    status = response.status_code
    if status == 200:
        return None
    text = mask_text(response.text)  # before it is cut: half a secret is not recognised
    if (status >= 500 and status != NOT_IMPLEMENTED) or status in RETRYABLE_STATUSES:
        message = f"the model server answered {status}: {text[:QUOTED_CHARS]}"
        return TemporaryError(message, code="server-failed", delay=retry_delay(response.headers))
    return refusal(status, text)


def refusal(status: int, text: str) -> PermanentError:
    """PermanentError("content-filtered") for a prompt that the server filters, else a ServerRefusal."""
    if FILTERED.search(text):
        return PermanentError("content-filtered", f"the model server filtered the prompt: {text[:QUOTED_CHARS]}")
    return ServerRefusal(status, text)


def retry_delay(headers: httpx.Headers) -> float | None:
    """The seconds of `Retry-After`, which may be a number or a date; None without one that can be read."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def response_format(schema: str) -> dict[str, Any]:
    """`response_format` of a request whose answer must satisfy `schema`, which is JSON."""
    return {"type": "json_schema", "json_schema": {"name": "verdict", "schema": json.loads(schema), "strict": True}}
